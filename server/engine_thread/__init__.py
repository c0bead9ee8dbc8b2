"""The engine on a thread of its own, asyncio beside it."""

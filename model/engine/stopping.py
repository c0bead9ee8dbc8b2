"""Stop strings across token borders: what may become one is held back, what is one is never shown. No torch."""


class StopMatcher:
    """Watches growing text for the first stop string that becomes complete.

    The result does not depend on how the text is cut into pieces. Of two stop strings that become
    complete with the same character, the longer one counts, since it began earlier.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show now, and whether a stop string was reached; then nothing more may be pushed."""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        length = self._length_to_hold(text)
        self._held = text[len(text) - length :]
        return text[: len(text) - length], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _length_to_hold(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0

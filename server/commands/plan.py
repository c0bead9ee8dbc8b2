"""``fano plan``: what a model will hold, from its config.json alone."""

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.cache.plan import MemoryPlan
from model.config import Dtype, EngineConfig, ModelConfig
from model.policy import BLOCK_TOKENS, AttentionPolicy, PolicyName
from server.commands.bars import HELD, bar
from server.sizes import readable

# Sizes are decimal, as the numbers of tokens in the names of models and limits are.
UNITS = {"": 1, "K": 1_000, "M": 1_000_000}


@dataclass(frozen=True, slots=True)
class Bill:
    """The plan of a model for ``num_sessions`` at ``context_tokens``, and that of policy full beside it."""

    model: ModelConfig
    engine: EngineConfig
    policy: AttentionPolicy
    plan: MemoryPlan
    full: MemoryPlan

    @staticmethod
    def of(model: ModelConfig, engine: EngineConfig) -> "Bill":
        """The bill of ``model`` run as ``engine`` says. Pure arithmetic."""
        full = MemoryPlan.of(model, _under(engine, AttentionPolicy()))
        return Bill(model, engine, engine.policy_for(model), MemoryPlan.of(model, engine), full)

    def as_json(self) -> dict[str, Any]:
        """All numbers, in bytes."""
        plan = self.plan
        return {
            "context_tokens": self.engine.max_context_tokens,
            "sessions": self.engine.num_slots,
            "dtype": self.engine.dtype.value,
            "policy": _policy(self.policy),
            "parameters": self.model.num_parameters(),
            "device_bytes": {**plan.pool_bytes, "total": plan.total_bytes},
            "host_bytes": {
                "preempted_requests_at_most": plan.saved_bytes,
                "checkpoints_and_sessions_at_most": plan.session_bytes,
            },
            "session_bytes": {
                "ssm_state": self.model.ssm_state_bytes,
                "conv_state": self.model.conv_state_bytes,
                "kv": plan.bytes_per_sequence - self.model.state_bytes,
                "total": plan.bytes_per_sequence,
                "total_under_full": self.full.bytes_per_sequence,
            },
            "archive": self._archive(),
            "kv_bytes_per_token_under_full": self.model.kv_bytes_per_token(self.engine.dtype),
            "state_capacity_bits": 8 * plan.bytes_per_sequence,
            "slots": plan.num_slots,
            "checkpoint_slots": plan.num_checkpoint_slots,
            "blocks": plan.num_blocks,
        }

    def _archive(self) -> dict[str, Any] | None:
        """What leaves the windows, on the host; None under policies that keep nothing of it."""
        if self.policy.name is not PolicyName.ARCHIVE:
            return None
        plan, num_blocks = self.plan, self.policy.num_archived(self.engine.max_context_tokens)
        return {
            "bytes_per_token": plan.archive_bytes_per_token,
            "summary_bytes_per_token": plan.summary_bytes_per_token,
            "session_bytes": num_blocks * plan.bytes_per_archived_block,
            "tokens_at_most": plan.num_archive_blocks * BLOCK_TOKENS,
            "memory_bytes_at_most": plan.archive_bytes,
            "disk_bytes_at_most": plan.archive_disk_bytes,
        }


def plan_bill(
    path: Path,
    context_tokens: int,
    num_sessions: int,
    dtype: Dtype,
    policy: PolicyName | None,
    num_threads: int = 1,
    **numbers: int | None,
) -> Bill:
    """The bill of the checkpoint in the directory ``path``, or of the config.json it names.

    ``numbers`` are ``sinks``, ``window`` and ``select``. Raises ``CheckpointNotFound``, ``ConfigInvalid``, and
    ValueError for numbers that are no whole blocks.
    """
    model = ModelConfig.from_pretrained(path.parent if path.name == "config.json" else path)
    own = model.policy
    told = {key: value for key, value in numbers.items() if value is not None}
    chosen = replace(own, name=own.name if policy is None else policy, **told)
    engine = EngineConfig(
        num_slots=num_sessions, max_context_tokens=context_tokens, dtype=dtype, policy=chosen, num_threads=num_threads
    )
    return Bill.of(model, engine)


def parse_size(text: str) -> int:
    """``4096``, ``32K`` or ``1M`` as a number. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KM]?)", text.strip().upper())
    if match is None or not (size := round(float(match[1]) * UNITS[match[2]])):
        raise ValueError(
            f"context is {text!r}, which is not a size; expected a number of tokens such as 4096, 32K or 1M"
        )
    return size


def print_bill(bill: Bill, name: str, console: Console) -> None:
    """The bill for people."""
    told = bill.as_json()
    context, sessions = told["context_tokens"], told["sessions"]
    say = partial(console.print, soft_wrap=True, highlight=False)
    say(f"[bold]{name}[/bold]: {told['parameters']:,} parameters in {told['dtype']}, {sessions} sessions of "
        f"{context:,} tokens, policy {_told(bill.policy)}")  # fmt: skip
    table = Table("on the device", "bytes", "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    if console.is_terminal:
        table.add_column("")
    total = bill.plan.total_bytes
    for pool, size in told["device_bytes"].items():
        style = "bold" if pool == "total" else None
        shown = [bar([(size / total, HELD)])] if console.is_terminal and pool != "total" else []
        table.add_row(pool, f"{size:,}", readable(size), *shown, style=style)
    console.print(table)
    session = told["session_bytes"]
    say(
        f"a session: {session['ssm_state'] + session['conv_state']:,} bytes of state, whatever its length, and "
        f"{session['kv']:,} of keys and values: {readable(session['total'])}, {told['state_capacity_bits']:,} bits"
    )
    full, per_token = session["total_under_full"], told["kv_bytes_per_token_under_full"]
    if full > session["total"]:
        times = f"{full / session['total']:,.0f} times as much"
        say(f"under policy full it would be {readable(full)} ({per_token:,} bytes a token), {times}")
    else:
        say(f"that grows with the length, by {per_token:,} bytes a token")
    if (archive := told["archive"]) is not None:
        say(
            f"in the archive on the host: {archive['bytes_per_token']:,.0f} bytes a token that left the window and "
            f"{archive['summary_bytes_per_token']:,.1f} of summaries, {readable(archive['session_bytes'])} a session; "
            f"there is room for {archive['tokens_at_most']:,} tokens in {readable(archive['memory_bytes_at_most'])} "
            f"of memory, with the summaries of all, and {readable(archive['disk_bytes_at_most'])} of disk"
        )
    plan = bill.plan
    say(
        f"of the states, {plan.num_checkpoint_slots} are slots for checkpoints, {readable(plan.bytes_per_slot)} each: "
        "what was read of prompts and sessions"
    )
    say(
        f"in host memory: at most {readable(plan.saved_bytes)} for preempted requests, "
        f"{readable(plan.session_bytes)} for checkpoints and sessions"
    )


def _under(engine: EngineConfig, policy: AttentionPolicy) -> EngineConfig:
    return EngineConfig(
        num_slots=engine.num_slots,
        max_context_tokens=engine.max_context_tokens,
        dtype=engine.dtype,
        policy=policy,
        num_threads=engine.num_threads,
    )


def _policy(policy: AttentionPolicy) -> dict[str, Any]:
    if policy.name is PolicyName.FULL:
        return {"name": policy.name.value}
    told = {"name": policy.name.value, "sinks": policy.sinks, "window": policy.window}
    return {**told, "select": policy.select} if policy.name is PolicyName.ARCHIVE else told


def _told(policy: AttentionPolicy) -> str:
    if policy.name is PolicyName.FULL:
        return policy.name.value
    blocks = f", {policy.select} blocks" if policy.name is PolicyName.ARCHIVE else ""
    return f"{policy.name.value} ({policy.sinks} sinks, {policy.window:,} tokens{blocks})"

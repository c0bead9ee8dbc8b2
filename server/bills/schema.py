"""The bills on the wire: what is asked of ``/v1/plan``, and what it and ``/v1/memory`` answer."""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from server.answers.inquiry import ServedModel
from server.bills.bill import MemoryBill
from server.bills.forecast import Forecast
from server.chat.schema import ChatMessage, FanoOptions
from server.error_table import row_of
from server.errors import RequestInvalid
from server.rendering import policy_view
from server.sampling_schema import MAX_CHOICES
from server.schemas import MAX_DOCUMENTS, DocumentId, ErrorView, KvArchiveBytes, ResidentBytes, Text, WireModel

MAX_PROMPT_TOKENS = 10_000_000


class PlanRequest(WireModel):
    """A chat request as it would be sent, or only the number of its prompt's tokens and its policy.

    ``documents`` is a shorter way to say ``fano.documents``.
    """

    model: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    prompt_tokens: Annotated[int, Field(ge=1, le=MAX_PROMPT_TOKENS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    documents: Annotated[list[DocumentId], Field(default_factory=list, max_length=MAX_DOCUMENTS)]
    fano: FanoOptions = FanoOptions()

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.messages is None) == (self.prompt_tokens is None):
            raise ValueError("send either messages or prompt_tokens")
        if self.documents and self.fano.documents:
            raise RequestInvalid("documents and fano.documents mean the same; send one of them", "documents")
        named = self.fano.model_fields_set - {"policy"}
        if self.messages is None and (self.documents or named):
            param = "documents" if self.documents else f"fano.{min(named)}"
            raise RequestInvalid(f"{param} needs messages, of which the last is what is asked", param)
        return self

    @property
    def options(self) -> FanoOptions:
        """The extension object, wherever the documents were named."""
        return self.fano.model_copy(update={"documents": self.documents}) if self.documents else self.fano


class FitView(BaseModel):
    """Whether the request would begin at once and have room to its last token, whether it ever could, and if not, why.
    ``pool`` is the one that has too little room, None where that is not the reason."""

    now: bool
    ever: bool
    pool: str | None
    error: ErrorView | None


class ForecastView(BaseModel):
    """The bill of a request before it runs. ``resident_bytes`` and ``archive_bytes`` are those of ``usage.fano`` when
    it has run to its last token, of which ``total_bytes`` is what is on the device; ``peak_kv_bytes``, the most while
    its prompt is read, must be free for it to begin. ``cached_tokens`` of the
    prompt would not be read again now; None where only their number was sent. The rest would take ``reading_seconds``,
    None where that is not known; with ``stream_required`` it is read for a stream alone."""

    object: str = "plan"
    model: str
    policy: dict[str, str | int]
    dtype: str
    prompt_tokens: int
    cached_tokens: int | None
    max_tokens: int
    n: int
    resident_bytes: ResidentBytes
    archive_bytes: KvArchiveBytes
    total_bytes: int
    peak_kv_bytes: int
    state_capacity_bits: int
    max_context_tokens: int
    reading_seconds: float | None
    stream_required: bool
    fits: FitView


@dataclass(frozen=True, slots=True)
class ReadingForecast:
    """What reading the rest of a prompt would take, None where that is not known, and whether it needs a stream."""

    seconds: float | None
    is_streamed_only: bool


@dataclass(frozen=True, slots=True)
class PromptBeside:
    """The tokens of a prompt that would be read beside its answer, and of them those that are remembered."""

    num_tokens: int = 0
    num_cached: int = 0


class UnitsView(BaseModel):
    """Units of a pool by status; ``free + used + cached == total``."""

    total: int
    free: int
    used: int
    cached: int
    bytes_each: int


class DevicePoolView(BaseModel):
    """What was promised before loading, and what the tensors take."""

    plan_bytes: int
    held_bytes: int


class DeviceView(BaseModel):
    """The device's pools. ``held_bytes`` and ``plan_bytes`` are the sums over them."""

    device: str
    pools: dict[str, DevicePoolView]
    plan_bytes: int
    held_bytes: int
    state_slots: UnitsView
    kv_blocks: UnitsView
    kv_blocks_shared: int


class HostView(BaseModel):
    """Host memory beside the device's pools. ``bytes`` is the sum of ``pools``; the pool ``sessions`` is requests that
    made room and checkpoints."""

    pools: dict[str, int]
    bytes: int
    preempted_bytes: int
    checkpoint_bytes: int
    checkpoint_budget_bytes: int


class DiskView(BaseModel):
    """Files. ``bytes`` is the sum of ``pools``."""

    pools: dict[str, int]
    bytes: int
    session_budget_bytes: int


class BillView(BaseModel):
    """The whole bill: on a CPU ``device.held_bytes + host.bytes + unaccounted_bytes == resident_set_bytes``, else the
    same without the device. ``tokens`` are those that were read, spared and written since the process began."""

    object: str = "memory"
    device: DeviceView
    host: HostView
    disk: DiskView
    sessions: dict[str, int]
    checkpoints: dict[str, int]
    tokens: dict[str, int]
    device_is_host: bool
    unaccounted_bytes: int
    resident_set_bytes: int


def bill_view(bill: MemoryBill) -> BillView:
    """The bill for a client."""
    stats = bill.engine
    slots, blocks, pools = stats.slots, stats.blocks, stats.pool_bytes
    per_slot = (pools["ssm_state"] + pools["conv_state"]) // max(1, slots.total)
    per_block = pools["kv"] // max(1, blocks.total)
    return BillView(
        device=DeviceView(
            device=stats.build.device,
            pools={
                pool: DevicePoolView(plan_bytes=planned, held_bytes=pools[pool])
                for pool, planned in stats.plan_bytes.items()
            },
            plan_bytes=sum(stats.plan_bytes.values()),
            held_bytes=bill.device_bytes,
            state_slots=UnitsView(
                total=slots.total, free=slots.free, used=slots.used, cached=slots.cached, bytes_each=per_slot
            ),
            kv_blocks=UnitsView(
                total=blocks.total, free=blocks.free, used=blocks.used, cached=blocks.cached, bytes_each=per_block
            ),
            kv_blocks_shared=stats.num_blocks_shared,
        ),
        host=HostView(
            pools=bill.host_pools,
            bytes=sum(bill.host_pools.values()),
            preempted_bytes=stats.saved_bytes,
            checkpoint_bytes=stats.checkpoint_bytes,
            checkpoint_budget_bytes=stats.checkpoint_budget_bytes,
        ),
        disk=DiskView(
            pools=bill.disk_pools,
            bytes=sum(bill.disk_pools.values()),
            session_budget_bytes=bill.sessions.max_disk_bytes,
        ),
        sessions=dict(bill.sessions.num_sessions),
        checkpoints={**stats.num_checkpoints, "lost": stats.num_checkpoints_lost},
        tokens=dict(stats.tokens_by_kind),
        device_is_host=bill.device_is_host,
        unaccounted_bytes=bill.unaccounted_bytes,
        resident_set_bytes=bill.resident_set_bytes,
    )


def forecast_view(
    forecast: Forecast | None,
    model: ServedModel,
    max_context_tokens: int,
    cached_tokens: int | None,
    reading: ReadingForecast,
    tokens_beside: int = 0,
) -> ForecastView:
    """The forecast for a client; None is a request for which no model would be asked. ``tokens_beside`` are read beside
    the answer."""
    refusal = forecast.refusal if forecast else None
    return ForecastView(
        model=model.name,
        policy=policy_view(forecast.policy if forecast else model.policy),
        dtype=model.dtype,
        prompt_tokens=forecast.num_prompt_tokens + tokens_beside if forecast else 0,
        cached_tokens=cached_tokens,
        max_tokens=forecast.max_tokens if forecast else 0,
        n=forecast.num_choices if forecast else 1,
        resident_bytes=ResidentBytes(
            kv=forecast.kv_bytes, ssm_state=forecast.ssm_state_bytes, conv_state=forecast.conv_state_bytes
        )
        if forecast
        else ResidentBytes(),
        archive_bytes=KvArchiveBytes(kv_archive=forecast.kv_archive_bytes, kv_summaries=forecast.kv_summary_bytes)
        if forecast
        else KvArchiveBytes(),
        total_bytes=forecast.total_bytes if forecast else 0,
        peak_kv_bytes=forecast.peak_kv_bytes if forecast else 0,
        state_capacity_bits=8 * forecast.total_bytes if forecast else 0,
        max_context_tokens=max_context_tokens,
        reading_seconds=None if reading.seconds is None else round(reading.seconds, 3),
        stream_required=reading.is_streamed_only,
        fits=FitView(
            now=forecast is None or forecast.fits_now,
            ever=refusal is None,
            pool=forecast.lacking if forecast else None,
            error=ErrorView(code=row_of(refusal).code, message=str(refusal)) if refusal else None,
        ),
    )

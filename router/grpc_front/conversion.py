"""Between the proto and the house's own types; the only place of the router that knows both."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from pdserve.errors import RequestError
from pdserve.sampling import Constraint, ConstraintKind, FinishReason, TokenLogprobs, choice_of
from pdserve.slo import Blame, Timing, Verdict
from pdserve.v1 import inference_pb2 as pb
from router.choice import ChoiceEnd, ChoiceUpdate
from router.interface import WorkerView
from router.validation import Prompt, PromptText, PromptTokens, RequestDraft, SamplingDraft, SloDraft

M = TypeVar("M", bound=Message)

_FINISH_REASON = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.ABORT: pb.FINISH_REASON_ABORT,
}
_BLAME = {
    Blame.NONE: pb.BLAME_UNSPECIFIED,
    Blame.QUEUE: pb.BLAME_QUEUE,
    Blame.PREFILL: pb.BLAME_PREFILL,
    Blame.TRANSFER: pb.BLAME_TRANSFER,
    Blame.DECODE_WAIT: pb.BLAME_DECODE_WAIT,
    Blame.DECODE: pb.BLAME_DECODE,
    Blame.WORKER_LOSS: pb.BLAME_WORKER_LOSS,
}


def parse(kind: type[M], raw: bytes) -> M:
    """A message from its bytes. Raises RequestError for bytes that are none: grpc itself would answer UNKNOWN."""
    try:
        return kind.FromString(raw)
    except (DecodeError, UnicodeDecodeError):
        raise RequestError(f"{len(raw):,} bytes are not a {kind.DESCRIPTOR.name}") from None


def draft_from(request: pb.GenerateRequest, time_left_s: float | None) -> RequestDraft:
    """What was asked; a field that is not there is None."""
    slo = request.slo
    return RequestDraft(
        prompts=_prompts(request),
        sampling=_sampling(request),
        default_temperature=0.0,
        default_max_tokens=None,
        use_generation_config=False,
        sampling_prefix="sampling.",
        request_id=request.request_id,
        model=request.model,
        slo=SloDraft(
            getattr(slo, "class"),
            slo.ttft_s if slo.HasField("ttft_s") else None,
            slo.tpot_s if slo.HasField("tpot_s") else None,
        ),
        priority=request.priority,
        tenant=request.tenant,
        time_left_s=time_left_s,
    )


def _prompts(request: pb.GenerateRequest) -> tuple[Prompt, ...]:
    match request.WhichOneof("prompt"):
        case "text":
            return (PromptText(request.text),)
        case "token_ids":
            return (PromptTokens(request.token_ids.ids),)
    return ()


def _sampling(request: pb.GenerateRequest) -> SamplingDraft:
    sampling = request.sampling

    def given(name: str) -> bool:
        return bool(sampling.HasField(name))

    return SamplingDraft(
        temperature=sampling.temperature if given("temperature") else None,
        top_p=sampling.top_p if given("top_p") else None,
        top_k=sampling.top_k if given("top_k") else None,
        min_p=sampling.min_p if given("min_p") else None,
        repetition_penalty=sampling.repetition_penalty if given("repetition_penalty") else None,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed if given("seed") else None,
        logit_bias=tuple(sampling.logit_bias.items()),
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
        min_tokens=request.min_tokens,
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs if request.HasField("logprobs") else None,
        constraint=_constraint(request),
        constraint_field=request.WhichOneof("constraint") or "",
    )


def _constraint(request: pb.GenerateRequest) -> Constraint | None:
    match request.WhichOneof("constraint"):
        case "json_schema":
            return Constraint(ConstraintKind.JSON_SCHEMA, request.json_schema)
        case "json_object":
            return Constraint(ConstraintKind.JSON_OBJECT) if request.json_object else None
        case "regex":
            return Constraint(ConstraintKind.REGEX, request.regex)
        case "grammar":
            return Constraint(ConstraintKind.GRAMMAR, request.grammar)
        case "choice":
            return choice_of(request.choice.texts)
    return None


class Responses:
    """The messages of one request as bytes; what all of them begin with is serialized once.

    A message inside another is its tag, its length and its bytes: so nothing is copied from message to message.
    """

    def __init__(self, request_id: str) -> None:
        self._head = pb.GenerateResponse(request_id=request_id).SerializeToString()
        self._chunk_head = self._head + _tag(pb.GenerateResponse.CHUNK_FIELD_NUMBER)
        self._complete_head = self._head + _tag(pb.GenerateResponse.COMPLETE_FIELD_NUMBER)

    def of(self, update: ChoiceUpdate) -> list[bytes]:
        """A chunk when there is something new, the complete when the choice ended."""
        responses = []
        if update.token_ids or update.text:
            chunk = pb.GenerateChunk(token_ids=update.token_ids, text=update.text)
            if update.logprobs:
                chunk.logprobs.extend(map(_logprobs, update.logprobs))
            if update.index:
                chunk.index = update.index
            responses.append(_enclosed(self._chunk_head, chunk))
        if update.end is not None:
            responses.append(_enclosed(self._complete_head, _complete(update.end)))
        return responses


def _tag(field_number: int) -> bytes:
    """Of a length-delimited field; its number is less than 16."""
    return bytes((field_number << 3 | 2,))


def _enclosed(head: bytes, message: Message) -> bytes:
    body = message.SerializeToString()
    length = len(body)
    if length < 0x80:
        return b"%b%c%b" % (head, length, body)
    digits = bytearray()
    while length >= 0x80:
        digits.append(length & 0x7F | 0x80)
        length >>= 7
    digits.append(length)
    return b"%b%b%b" % (head, bytes(digits), body)


def _complete(end: ChoiceEnd) -> pb.GenerateComplete:
    return pb.GenerateComplete(
        token_ids=end.token_ids,
        text=end.text,
        finish_reason=_FINISH_REASON[end.finish_reason],
        usage=pb.Usage(
            prompt_tokens=end.num_prompt_tokens,
            completion_tokens=len(end.token_ids),
            cached_tokens=end.cached_tokens,
        ),
        timing=_timing(end.timing),
        slo=slo_outcome(end.verdict),
    )


def _logprobs(entry: TokenLogprobs) -> pb.TokenLogprobs:
    top = [pb.TopLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in entry.top]
    return pb.TokenLogprobs(token_id=entry.token_id, logprob=entry.logprob, top=top)


def _timing(timing: Timing) -> pb.Timing:
    return pb.Timing(
        queue_s=timing.queue_s,
        prefill_s=timing.prefill_s,
        transfer_s=timing.transfer_s,
        decode_wait_s=timing.decode_wait_s,
        decode_s=timing.decode_s,
        ttft_s=timing.ttft_s,
        tpot_s=timing.tpot_s,
        prefill_worker=timing.prefill_worker,
        decode_worker=timing.decode_worker,
        attempts=timing.attempts,
    )


def slo_outcome(verdict: Verdict) -> pb.SloOutcome:
    return pb.SloOutcome(met_ttft=verdict.met_ttft, met_tpot=verdict.met_tpot, blame=_BLAME[verdict.blame])


def worker_info(worker: WorkerView) -> pb.WorkerInfo:
    return pb.WorkerInfo(id=worker.id, role=worker.role, device=worker.device, up=worker.up)

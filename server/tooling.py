"""Functions that a chat may call: whether this model can be told of them, and what it may then write."""

from dataclasses import replace

from model.engine.constraint import ConstraintMaker
from server.chat_fields import FieldRefused
from server.chat_schema import ChatRequest
from server.errors import RequestInvalid
from server.grammar import Grammars
from server.inquiry import Inquiry
from server.prompt import ChatTokenizer
from server.tool_calls import OPENING
from server.tool_grammar import CallsOrText, call_grammar


def with_tools(inquiry: Inquiry, body: ChatRequest, tokenizer: ChatTokenizer, grammars: Grammars) -> Inquiry:
    """The inquiry with the functions that the model is told of, and the grammar of their calls. Blocking.

    Raises ``RequestInvalid`` where this model's chat template has no such functions, and for a choice or a schema
    that makes no sense.
    """
    _check_model(body, tokenizer)
    choice = body.tool_choice.type if body.tool_choice is not None else "auto"
    if not body.tools:
        if choice in ("required", "function"):
            raise RequestInvalid("tool_choice wants a call, but there are no tools", "tool_choice")
        return inquiry
    if inquiry.documents:
        raise RequestInvalid("tools cannot be used with documents: an answer from them calls nothing", "tools")
    if inquiry.constraint is not None:
        raise RequestInvalid(
            "tools cannot be used with response_format: a call has a form of its own", "response_format"
        )
    functions = [(f"tools.{place}.function", tool.function) for place, tool in enumerate(body.tools)]
    names = [function.name for _, function in functions]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestInvalid(f"tools has two functions of the name {twice!r}", "tools")
    if choice == "none":
        return inquiry
    if body.tool_choice is not None and body.tool_choice.function is not None:
        wanted = body.tool_choice.function.name
        functions = [each for each in functions if each[1].name == wanted]
        if not functions:
            raise RequestInvalid(f"tool_choice names {wanted!r}, which is not in tools", "tool_choice.function.name")
    calls = call_grammar(grammars, functions, body.parallel_tool_calls is not False)
    constraint: ConstraintMaker = calls
    if choice == "auto":
        constraint = lambda: CallsOrText(calls, grammars)  # noqa: E731
    return replace(
        inquiry, constraint=constraint, tools=tuple(tool.model_dump(exclude_none=True) for tool in body.tools)
    )


def _check_model(body: ChatRequest, tokenizer: ChatTokenizer) -> None:
    source = tokenizer.tool_template
    reason = None
    if source is None:
        reason = "this model's chat template has no tools"
    elif OPENING not in source:
        reason = f"this model's chat template does not write calls as {OPENING}"
    if reason is None:
        return
    if body.tools:
        raise FieldRefused("tools", reason)
    for place, message in enumerate(body.messages):
        if message.role == "tool":
            raise RequestInvalid(f"{reason}, so no message is one of a tool", f"messages.{place}.role")
        for key in ("tool_calls", "tool_call_id"):
            if getattr(message, key):
                raise FieldRefused(f"messages.{place}.{key}", reason)

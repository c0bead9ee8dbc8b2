"""Each field of OpenAI's response request, and of what its input and tools are made of, by its treatment.

The mechanism is that of ``chat_fields``: honoured, harmlessly neutral, or refused by name unless the value asks for
nothing.
"""

from collections.abc import Mapping

from server.chat.fields import HONOURED, WHERE_TAUGHT, ChatField, Treatment


def _neutral(reason: str) -> ChatField:
    return ChatField(Treatment.NEUTRAL, reason)


def _refused(reason: str, *harmless: object) -> ChatField:
    return ChatField(Treatment.REFUSED, reason, harmless)


RESPONSE_FIELDS: Mapping[str, ChatField] = {
    "background": HONOURED,
    "include": HONOURED,
    "input": HONOURED,
    "instructions": HONOURED,
    "max_output_tokens": HONOURED,
    "max_tool_calls": HONOURED,
    "metadata": HONOURED,
    "model": HONOURED,
    "parallel_tool_calls": HONOURED,
    "previous_response_id": HONOURED,
    "store": HONOURED,
    "stream": HONOURED,
    "temperature": HONOURED,
    "text": HONOURED,
    "tool_choice": HONOURED,
    "tools": ChatField(Treatment.HONOURED, f"`file_search`; and functions, {WHERE_TAUGHT}"),
    "top_logprobs": HONOURED,
    "top_p": HONOURED,
    "truncation": HONOURED,
    "prompt_cache_key": _neutral("a routing hint"),
    "prompt_cache_options": _neutral("a caching hint"),
    "prompt_cache_retention": _neutral("a caching hint"),
    "safety_identifier": _neutral("names the user to a provider"),
    "service_tier": _neutral("there is one tier, and replies say so"),
    "stream_options": _neutral("there is no padding to leave out"),
    "user": _neutral("names the user to a provider"),
    "access_programs": _refused("there are no access programs", {}, {"cyber": "standard"}),
    "background_options": _refused("responses in the background have no options", {}),
    "context_management": _refused("contexts are not compacted", []),
    "conversation": _refused("there are no conversation objects: go on with previous_response_id"),
    "image": _refused("this model sees no images", {}),
    "moderation": _refused("nothing is moderated"),
    "prompt": _refused("no prompt templates are stored"),
    "reasoning": _refused("this model does not reason in steps", {}, {"effort": "none"}),
}

# Of POST /v1/responses/input_tokens.
COUNT_FIELDS: Mapping[str, ChatField] = {
    "input": HONOURED,
    "instructions": HONOURED,
    "model": HONOURED,
    "previous_response_id": HONOURED,
    "text": HONOURED,
    "tool_choice": HONOURED,
    "tools": HONOURED,
    "truncation": HONOURED,
    "parallel_tool_calls": _neutral("the prompt is the same"),
    "conversation": RESPONSE_FIELDS["conversation"],
    "personality": _refused("there are no personalities"),
    "reasoning": RESPONSE_FIELDS["reasoning"],
}

# Of an input item of the type message, those of a reply among them: it may come back as the client dumps it.
MESSAGE_FIELDS: Mapping[str, ChatField] = {
    "type": HONOURED,
    "role": HONOURED,
    "content": HONOURED,
    "id": _neutral("each item gets an id of its own when it is stored"),
    "status": _neutral("how far an earlier reply came"),
    "phase": _neutral("this model does not say whether a reply is the last"),
}

SEARCH_CALL_FIELDS: Mapping[str, ChatField] = {
    "type": HONOURED,
    "id": _neutral("each item gets an id of its own when it is stored"),
    "queries": HONOURED,
    "status": HONOURED,
    "results": _neutral("what was found was said in the reply; documents are searched again"),
}

# Of a part of a message's content, whatever its type.
PART_FIELDS: Mapping[str, ChatField] = {
    "type": HONOURED,
    "text": HONOURED,
    "file_id": HONOURED,
    "file_data": HONOURED,
    "filename": HONOURED,
    "annotations": _neutral("citations of an earlier reply"),
    "logprobs": _neutral("of an earlier reply"),
    "prompt_cache_breakpoint": _neutral("a caching hint"),
    "parsed": _neutral("what the client made of the text"),
    "detail": _refused("files are read as text, not seen as pages", "auto", "low"),
    "file_url": _refused("nothing is fetched from other places: send file_id or file_data"),
}

FILE_SEARCH_FIELDS: Mapping[str, ChatField] = {
    "type": HONOURED,
    "vector_store_ids": HONOURED,
    "filters": HONOURED,
    "max_num_results": HONOURED,
    "ranking_options": HONOURED,
}

_NO_CALLERS = _refused("functions are called by the client", {"type": "direct"})
_NO_ASYNC = _refused("a call waits for its output", False)
_NO_NAMESPACE = _refused("functions have no namespaces")

FUNCTION_FIELDS: Mapping[str, ChatField] = {
    "type": HONOURED,
    "name": HONOURED,
    "description": HONOURED,
    "parameters": HONOURED,
    "strict": ChatField(Treatment.HONOURED, "the arguments of every call keep to the schema, whether it is or not"),
    "allowed_callers": _refused("functions are called by the client", ["direct"]),
    "defer_loading": _refused("the model is told of every function at once", False),
    "output_schema": _refused("outputs are read as they are"),
    "async": _NO_ASYNC,
}

FUNCTION_CALL_FIELDS: Mapping[str, ChatField] = {
    "type": HONOURED,
    "call_id": HONOURED,
    "name": HONOURED,
    "arguments": HONOURED,
    "id": _neutral("each item gets an id of its own when it is stored"),
    "status": _neutral("how far an earlier reply came"),
    "namespace": _NO_NAMESPACE,
    "caller": _NO_CALLERS,
    "async": _NO_ASYNC,
}

FUNCTION_OUTPUT_FIELDS: Mapping[str, ChatField] = {
    "type": HONOURED,
    "call_id": HONOURED,
    "output": HONOURED,
    "id": _neutral("each item gets an id of its own when it is stored"),
    "status": _neutral("an output that is sent is whole"),
    "name": _neutral("the call says it"),
    "namespace": _NO_NAMESPACE,
    "caller": _NO_CALLERS,
}

RANKING_FIELDS: Mapping[str, ChatField] = {
    "score_threshold": HONOURED,
    "ranker": _neutral("there is one ranker"),
    "hybrid_search": _refused("the ranking is learned and has no such weights"),
}

TEXT_FIELDS: Mapping[str, ChatField] = {
    "format": HONOURED,
    "verbosity": _refused("verbosity is not adjusted", "medium"),
}

# What may be asked to come with a response. What belongs to other tools never occurs, so nothing of it is left out.
INCLUDED = ("file_search_call.results", "message.output_text.logprobs")
NEVER_OCCURS = (
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
)

# Types that OpenAI has and this server has not, each with the reason.
TOOLS_REFUSED: Mapping[str, str] = {
    "custom": "only functions with JSON arguments are called",
    "namespace": "functions have no namespaces",
    "tool_search": "the model is told of every function at once",
    "programmatic_tool_calling": "no code is run",
    "web_search": "the web is not searched",
    "web_search_2025_08_26": "the web is not searched",
    "web_search_preview": "the web is not searched",
    "web_search_preview_2025_03_11": "the web is not searched",
    "computer": "no computer is used",
    "computer_use": "no computer is used",
    "computer_use_preview": "no computer is used",
    "mcp": "no other servers are called",
    "code_interpreter": "no code is run",
    "image_generation": "no images are made",
    "local_shell": "no commands are run",
    "shell": "no commands are run",
    "apply_patch": "no files are changed",
}
ITEMS_REFUSED = "only messages, calls of functions with their outputs, and file searches of earlier replies, are taken"

"""Messages to prompt text, by the Jinja template that came with the checkpoint.

The template is foreign code and runs in Jinja's immutable sandbox. The names it may use follow
what published checkpoints expect (transformers' ``apply_chat_template``).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import jinja2.meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.errors import ChatTemplateRejected, ConfigInvalid


class ChatTemplate:
    """A compiled template. Raises ``ConfigInvalid`` when its source is not Jinja."""

    def __init__(self, source: str, control_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._control_tokens = dict(control_tokens)
        self.source = source
        try:
            self._template = environment.from_string(source)
            self.uses_tools = "tools" in jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ConfigInvalid(
                "chat_template", error.message, "a Jinja template", f"mend line {error.lineno} of the template"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """The prompt's text, control tokens spelled out. Raises ``ChatTemplateRejected``."""
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools or None,
                documents=None,
                **self._control_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ChatTemplateRejected(str(error)) from error


def read_chat_template(directory: Path, tokenizer_config: Mapping[str, object]) -> str | None:
    """Source of the checkpoint's template: ``chat_template.jinja`` first, else the tokenizer's configuration."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = tokenizer_config.get("chat_template")
    if isinstance(source, list):  # several named templates, of which "default" is for plain chat
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise ConfigInvalid("chat_template", type(source).__name__, "text", "mend tokenizer_config.json")
    return source


def _to_json(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now(UTC).strftime(pattern)

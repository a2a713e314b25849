"""The section model: the base model, its chat template and added tokens."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, JsonValue

from tunesmith.configs.sections.section import Section


def _token_as_written(value: object) -> object:
    """Read a token without options, which may be written as a string."""
    return {"token": value} if isinstance(value, str) else value


class NewToken(Section):
    """A token to add to the vocabulary: a string, or a section with options."""

    token: str
    """The token's text. Texts are searched for it before anything else, exactly as it is written here."""
    description: Annotated[str, Field(min_length=1)] | None = None
    """A text; the token's initial embedding is the mean over the tokens of this text. Null: the mean over the
    vocabulary."""
    special: bool = False
    """A control token, which answers usually do not show. In messages of users it is encoded as text (see
    data.split_special_tokens)."""


class Model(Section):
    """The base model and its chat template."""

    base: Annotated[str, Field(min_length=1)]
    """A Hugging Face directory, a GGUF file, or a hub id (`organization/name`).
    Paths: relative to the recipe, then to the working directory."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; a commit makes the run reproducible."""
    adapter: Literal["merge", "continue"] | None = None
    """Required if `base` is the directory of a LoRA adapter. merge: the adapter is merged into its base model once, in
    fp32, and the run trains on the result. continue: training starts from the adapter's weights; method must have its
    settings."""
    adapter_base: str | None = None
    """The base model of that adapter: a directory or hub id. Null: as named in adapter_config.json."""
    chat_template: str | None = None
    """A file with a Jinja chat template that overrides the model's."""
    chat_template_kwargs: dict[str, JsonValue] = {}
    """Values of variables that the chat template reads, such as `{enable_thinking: false}`, in training, evaluation and
    the export, whose template has them as defaults. A name that the template does not read is an error."""
    add_tokens: list[Annotated[NewToken, BeforeValidator(_token_as_written)]] = []
    """Tokens to add to the vocabulary, as strings or with options, for causal models. With adapters only their rows of
    embedding and head are trained in addition, with method full all rows."""

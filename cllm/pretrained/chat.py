"""A chat as the text that a model was tuned on, by its template: a program in Jinja's language, run in a sandbox.

A template is somebody else's code. It sees the messages and the special tokens, and nothing of Python: jinja2's sandbox
without mutation, at 3.1.6 or later, where ways out of it were closed. ChatML's own form needs no library.
"""

import json

from cllm.checks import installing
from cllm.errors import ConfigError, DataError

CHATML = "chatml"  # in place of a template: the form that is built in
LEAST_JINJA = (3, 1, 6)


def render(template: str, messages: list[dict], special: dict[str, str], where: str, answer: bool = True,
           now=None) -> str:
    """The text of some messages.

    Parameters
    ----------
    template : str
        In Jinja's language, or `CHATML`.
    messages : list of {"role": str, "content": str}
    special : dict of str by str
        Special tokens by name.
    where : str
        Named in errors.
    answer : bool
        Whether an answer begins after them.
    now : datetime or None
        What templates that write the date are told.

    Raises
    ------
    ConfigError
        When jinja2 is missing or too old.
    DataError
        When the template refuses the messages or does not work.
    """
    if template == CHATML:
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        return text + ("<|im_start|>assistant\n" if answer else "")
    jinja = _jinja()
    try:
        return _environment(jinja, now).from_string(template).render(messages=messages, add_generation_prompt=answer, **special)
    except Exception as error:  # whatever another's program raises
        raise DataError(f"chat template of {where}", "must take these messages", f"{type(error).__name__}: {error}",
                        "Other roles or contents may be what it wants; or give the text with --prompt alone.") from error


def _jinja():
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError as error:
        raise ConfigError("chat template", "needs the library jinja2", "an installation without it",
                          installing("hf")) from error
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < LEAST_JINJA:
        raise ConfigError("chat template", "needs jinja2 3.1.6 or later, whose sandbox is closed", jinja2.__version__,
                          installing("hf"))
    return jinja2


def _environment(jinja, now):
    """A sandbox with what templates of chats expect: loops that can be left, dates, refusals, JSON as it is."""

    def refuse(message):
        raise jinja.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = jinja.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=[jinja.ext.loopcontrols, _generation(jinja)])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = refuse
    if now is not None:
        made.globals["strftime_now"] = now.strftime
    return made


def _generation(jinja):
    """``{% generation %}``, by which templates mark answers: what stands in it, as it is."""

    class Generation(jinja.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja.nodes.Scope(body).set_lineno(line)

    return Generation

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.tokenization.chat_template import ChatTemplate
from tunesmith.data.tokenization.tokenizer import Tokenizer

PRINTS_VERBATIM = {
    "chatml": True,
    "llama2": True,
    "phi3": True,
    "marked": False,
    "llama3": False,
    "gemma": False,
    "thinking": False,
}
START = "{% for message in messages %}"

NOT_VERBATIM = {
    "a filter": START + "{{ message.content | trim }}{% endfor %}",
    "a filter block": "{% filter upper %}" + START + "{{ message.content }}{% endfor %}{% endfilter %}",
    "a condition": START + "{% if message.content %}x{% endif %}{% endfor %}",
    "a conditional expression": START + "{{ message.content if message.content else '-' }}{% endfor %}",
    "a variable": START + "{% set c = message.content %}{{ c }}{% endfor %}",
    "a set block": START + "{% set c %}{{ message.content }}{% endset %}{{ c[0] }}{% endfor %}",
    "a macro": "{% macro m(x) %}{{ x }}{% endmacro %}" + START + "{{ m(message.content) }}{% endfor %}",
    "a macro's body": START + "{% macro m() %}{{ message.content }}{% endmacro %}{{ m()[0] }}{% endfor %}",
    "a method": START + "{{ message.content.strip() }}{% endfor %}",
    "a slice": START + "{{ message.content[:2] }}{% endfor %}",
    "a format": START + "{{ '%s' % message.content }}{% endfor %}",
    "a multiplication": START + "{{ message.content * 2 }}{% endfor %}",
    "the message as a whole": START + "{{ message | tojson }}{% endfor %}",
    "the messages as a whole": "{{ messages | tojson }}",
    "the message under another name": START + "{% set m = message %}{{ m.content | trim }}{% endfor %}",
    "a list under another name": "{% set rest = messages[1:] %}{% for m in rest %}{{ m.content | trim }}{% endfor %}",
    "a computed key": START + "{% set k = 'content' %}{{ message[k] | trim }}{% endfor %}",
    "the method get": START + "{{ message.get('content') | trim }}{% endfor %}",
    "the items": START + "{% for k, v in message.items() %}{{ v | trim }}{% endfor %}{% endfor %}",
    "the previous item": START
    + "{% if loop.previtem and loop.previtem.content %}x{% endif %}{{ message.content }}{% endfor %}",
    "a change": START + "{% if loop.changed(message.content) %}x{% endif %}{{ message.content }}{% endfor %}",
    "a filter on the loop": "{% for m in messages | selectattr('content', 'ne', 'a') %}{{ m.content }}{% endfor %}",
    "a filter in the loop": "{% for m in messages if m.content != 'a' %}{{ m.content }}{% endfor %}",
    "the first message's content": "{% if messages[0].content == 'a' %}x{% endif %}"
    + START
    + "{{ message.content }}{% endfor %}",
}


@pytest.mark.parametrize("name", PRINTS_VERBATIM)
def test_known_templates_are_classified(tokenizers, name):
    assert tokenizers[name].template.prints_verbatim is PRINTS_VERBATIM[name]


def test_smollm2_prints_verbatim(smollm2):
    assert Tokenizer.load(smollm2).template.prints_verbatim


@pytest.mark.parametrize("case", NOT_VERBATIM)
def test_a_template_that_processes_contents_is_not_verbatim(case):
    assert not ChatTemplate(NOT_VERBATIM[case]).prints_verbatim


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30)), min_size=1, max_size=5)
)
@settings(max_examples=150, deadline=None)
def test_a_verbatim_template_renders_the_text_of_its_layout(tokenizers, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    for name in ("chatml", "phi3", "llama2"):
        template = tokenizers[name].template
        layout = template.layout(messages)
        if layout is not None:
            assert layout.text([content for _, content in turns]) == template.render(messages)

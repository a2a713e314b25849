"""Text is escaped by construction."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.report.markup import Html, details, markup, prose, section, table, tag, term

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></textarea><!--",
    "]]>&lt;b&gt;&amp;&#60;",
    "\x00\x08\x1b[31mred\x7f\x85",
    "\u202eright to left\u2066",
    "lone \udc80 surrogate \ufffe",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_escaped_in_content_and_attributes(text):
    element = ElementTree.fromstring(tag("p", text, title=text))
    assert list(element) == []
    assert set(element.attrib) == {"title"}
    assert element.text
    assert element.text.startswith(text[:4].replace("\x00", "␀").replace("\x08", "␈").replace("\x1b", "␛")[:1]) or (
        text[0] == "\u202e"
    )


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Cn"])))
def test_ordinary_text_round_trips(text):
    chunks = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = chunks.append
    parser.feed(tag("p", text))
    parser.close()
    assert "".join(chunks) == text
    assert ElementTree.fromstring(tag("p", title=text)).attrib["title"].split() == text.split()


@given(st.text())
def test_any_text_gives_well_formed_utf8_markup(text):
    element = tag("p", text, class_=text)
    ElementTree.fromstring(element.encode("utf-8"))


def test_control_and_bidi_characters_are_replaced_by_visible_ones():
    assert markup("a\x00b\x1bc") == "a␀b␛c"
    assert markup("\u202eabc") == "\ufffdabc"
    assert markup("\udc80\ufffe") == "\ufffd\ufffd"
    assert markup("tab\tline\nend") == "tab\tline\nend"
    assert markup("👩\u200d🔬 नमस्ते العربية") == "👩\u200d🔬 नमस्ते العربية"


def test_markup_is_not_escaped_and_content_nests():
    assert tag("p", Html("<b>x</b>"), "<", None, ["a", [1, 2.5]]) == "<p><b>x</b>&lt;a12.5</p>"


def test_attribute_names_are_converted_and_none_and_false_omitted():
    element = tag("i", class_="a", aria_label="b", hidden=True, open_=False, title=None)
    assert element == '<i class="a" aria-label="b" hidden=""></i>'


def test_empty_elements_are_closed_so_that_svg_does_not_nest_siblings():
    assert tag("line", x1="0") == '<line x1="0"/>'
    assert tag("circle", tag("title", "t")) == "<circle><title>t</title></circle>"


def test_paired_backticks_make_code_and_an_unpaired_one_is_literal():
    assert prose("run `tunesmith resume <x>` again") == "run <code>tunesmith resume &lt;x&gt;</code> again"
    assert prose("it`s") == "it`s"
    assert prose(None) == ""


def test_table_has_row_and_column_headers():
    element = ElementTree.fromstring(table("Caption", ["Name", "Value"], [["a", 1]], numeric=(1,)))
    assert element.attrib == {"class": "table", "tabindex": "0", "role": "region", "aria-label": "Caption"}
    assert element.findtext("table/caption") == "Caption"
    assert [(th.text, th.attrib["scope"]) for th in element.iter("th")] == [
        ("Name", "col"),
        ("Value", "col"),
        ("a", "row"),
    ]
    (cell,) = element.iter("td")
    assert (cell.text, cell.attrib["class"]) == ("1", "number")


def test_section_is_a_labelled_landmark():
    element = ElementTree.fromstring(section("x", "Title", details("more", "text")))
    heading = element.find("h2")
    assert heading is not None
    assert element.attrib["aria-labelledby"] == heading.attrib["id"]


def test_term_has_its_definition_as_a_tooltip():
    assert term("Loss", 'in "nats"') == '<abbr title="in &quot;nats&quot;">Loss</abbr>'
    assert term("Loss <x>", None) == "Loss &lt;x&gt;"

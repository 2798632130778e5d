"""The page of a reproduction, read by a parser: whole, escaped, and in need of nothing else."""

import base64
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from cdvae_ray.errors import DataError
from cdvae_ray.evaluation.headlines import Headline
from cdvae_ray.evaluation.html_report import (
    ReportLink,
    ReportSection,
    ReportStep,
    report_html,
    section_html,
)

VOID = {"meta", "link", "img", "br", "hr", "input", "col"}
FIRST, SECOND = b"\x89PNG\r\n\x1a\nfirst", b"\x89PNG\r\n\x1a\nsecond\xff\x00"
RUN = "http://server:5000/#/experiments/1/runs/abc"
EVIL = "<script>alert('a & \"b\"')</script><img src=x onerror=alert(1)>"


class Element:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, attributes, []

    @property
    def text(self):
        return "".join(each if isinstance(each, str) else each.text for each in self.children)

    def all(self, *tags):
        """Elements below this one, in the page's order."""
        for each in self.children:
            if isinstance(each, Element):
                if each.tag in tags or not tags:
                    yield each
                yield from each.all(*tags)

    def of_class(self, name):
        return [each for each in self.all() if name in each.attributes.get("class", "").split()]


class Reader(HTMLParser):
    """A tree of the page; refuses tags that are not closed in the order they were opened."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {self.get_starttag_text()}"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [reader.root], f"never closed: {[each.tag for each in reader.open]}"
    return reader.root


def headline(**changes):
    values = {
        "result": "Table 4",
        "quantity": "AUROC of MD on R(x)",
        "threat_model": "PGD-Linf on D(x)",
        "images": 1234,
        "value": 0.75,
        "low": 0.7,
        "high": 0.82,
        "paper": None,
        "is_share": True,
    }
    return Headline(**{**values, **changes})


def section(page, key="study", **changes):
    values = {
        "title": f"Section {key}",
        "results": ["Table 1", "Figure 2"],
        "pictures": {},
        "run": ReportLink(text="abcdef", address=RUN),
    }
    return ReportSection(key=key, page=page, **{**values, **changes})


def step(**changes):
    values = {
        "name": "CD-VAE",
        "settings": "train smoke",
        "digest": "0123456789abcdef",
        "was_stored": False,
        "run": ReportLink(text="not tracked"),
    }
    return ReportStep(**{**values, **changes})


PAGE = """# The study

- seed: 0
- images: digits

## Table 1

Mean *cosine*, **not** all of it; `code`.

| attack | n | R(x), R(x') |
|---|---|---|
| C&W | 1,234 | **0.95** < 1 |

![Figure 2](figure-2.png)

### Table 1

1. one
2. two

###### Deep
"""


def content(**changes):
    values = {
        "title": "A reproduction",
        "facts": {"results": "Table 1", "seed": "0"},
        "remarks": ["Small networks."],
        "headlines": [
            headline(paper=0.9979),
            headline(result="Table 1", is_share=False, value=22.31, low=None, high=None),
        ],
        "sections": [
            section(PAGE, pictures={"figure-2.png": FIRST, "radius.png": SECOND}),
            section("# The study\n\nText.", key="grey-box", checks={"pass": 3, "not run": 0}),
        ],
        "steps": [step(), step(name="detection", was_stored=True)],
    }
    return {**values, **changes}


def made(**changes):
    return read(report_html(**content(**changes)))


def part(page, key):
    """The section of that id."""
    (found,) = [each for each in page.all("section") if each.attributes.get("id") == key]
    return found


def lines(page):
    """Rows of the numbers at a glance, without their header."""
    (body,) = part(page, "glance").all("tbody")
    return list(body.all("tr"))


# The page.


def test_the_page_is_html_with_well_nested_tags():
    text = report_html(**content())
    assert text.lstrip().startswith("<!doctype html>")
    page = read(text)
    (html,) = [each for each in page.children if isinstance(each, Element)]
    assert html.tag == "html" and html.attributes["lang"]
    assert [each.tag for each in html.children if isinstance(each, Element)] == ["head", "body"]
    (title,) = page.all("title")
    assert title.text == "A reproduction"


def test_the_page_needs_nothing_from_outside_and_runs_nothing():
    page = made()
    assert not list(page.all("script", "iframe", "object", "embed", "base", "form"))
    for each in page.all():
        assert not any(name.startswith("on") for name in each.attributes), each.attributes
        assert each.attributes.get("src", "data:").startswith("data:")
        address = each.attributes.get("href", "#")
        assert address == RUN or address.startswith(("#", "data:"))
        # Only a person who clicks leaves the page.
        assert address != RUN or each.tag == "a"
        assert "url(" not in each.attributes.get("style", "")
    (style,) = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text


def test_the_pages_own_policy_forbids_scripts_and_loading():
    (policy,) = [
        each.attributes["content"]
        for each in made().all("meta")
        if each.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "script-src" not in rules


def test_facts_remarks_and_sections_are_all_there_in_their_order():
    page = made()
    (facts,) = page.all("dl")
    assert [each.text for each in facts.all("dt", "dd")] == ["results", "Table 1", "seed", "0"]
    assert [each.text for each in page.of_class("remark")] == ["Small networks."]
    assert [each.attributes["id"] for each in page.all("section")] == [
        *("glance", "study", "grey-box", "steps"),
    ]
    assert "Holds Table 1, Figure 2." in part(page, "study").text
    assert len(list(page.all("h1"))) == 1


def test_a_page_of_nothing_is_a_page():
    page = made(facts={}, remarks=[], headlines=[], sections=[], steps=[])
    assert lines(page) == []
    assert [each.attributes["id"] for each in page.all("section")] == ["glance", "steps"]


def test_equal_inputs_give_equal_bytes():
    assert report_html(**content()).encode() == report_html(**content()).encode()


def test_ids_are_unique_and_every_address_within_the_page_has_its_target():
    repeated = "# A\n\n## A\n\n## A 2\n\n## A\n\n## &\n\n## ?"
    page = made(
        sections=[
            section(repeated, key="study"),
            section(repeated, key="detection"),
            section(PAGE.replace("![Figure 2](figure-2.png)", ""), key="grey-box"),
        ]
    )
    ids = Counter(each.attributes["id"] for each in page.all() if "id" in each.attributes)
    assert set(ids.values()) == {1}
    targets = [each.attributes["href"] for each in page.all("a")]
    inner = [each[1:] for each in targets if each.startswith("#")]
    assert {"glance", "study", "detection", "grey-box", "steps"} <= set(inner)
    assert set(inner) <= set(ids)


def test_headings_have_addresses_that_begin_with_their_sections():
    found = list(read(section_html(section("# What G(x) and R(x) hold", key="study"))).all("h3"))
    assert [each.attributes["id"] for each in found] == ["study-what-g-x-and-r-x-hold"]


# Sections.


def test_markdown_becomes_html_with_headings_below_the_sections_own():
    body = read(section_html(section(PAGE, pictures={"figure-2.png": FIRST})))
    headings = [(each.tag, each.text) for each in body.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert headings == [
        ("h3", "The study"),
        ("h4", "Table 1"),
        ("h5", "Table 1"),
        ("h6", "Deep"),
    ]
    own = list(part(made(), "study").all("h1", "h2"))
    assert [(each.tag, each.text) for each in own] == [("h2", "Section study")]
    (table,) = body.all("table")
    assert [each.text for each in table.all("th")] == ["attack", "n", "R(x), R(x')"]
    assert [each.text for each in table.all("td")] == ["C&W", "1,234", "0.95 < 1"]
    assert [each.text for each in body.all("li")] == ["seed: 0", "images: digits", "one", "two"]
    assert [each.text for each in body.all("strong", "em", "code")] == [
        *("cosine", "not", "code", "0.95"),
    ]


def test_a_wide_table_scrolls_by_itself_also_by_keyboard():
    body = read(section_html(section("| a |\n|---|\n| 1 |\n\n| b |\n|---|\n| 2 |")))
    wide = body.of_class("wide")
    assert [each.tag for each in wide] == ["div", "div"]
    for each in wide:
        assert each.attributes["tabindex"] == "0"
        assert len(list(each.all("table"))) == 1


def test_pictures_are_part_of_the_page_byte_by_byte():
    page = made()
    images = list(page.all("img"))
    assert [each.attributes["alt"] for each in images] == ["Figure 2", "radius"]
    for each, expected in zip(images, (FIRST, SECOND), strict=True):
        start, comma, encoded = each.attributes["src"].partition(",")
        assert (start, comma) == ("data:image/png;base64", ",")
        assert base64.b64decode(encoded, validate=True) == expected


def test_a_picture_that_the_page_does_not_show_comes_once_and_last():
    pictures = {"shown.png": FIRST, "other.png": SECOND}
    found = section("# T\n\n![what it shows](shown.png)\n\nEnd.", pictures=pictures)
    body = read(section_html(found))
    assert [each.attributes["alt"] for each in body.all("img")] == ["what it shows", "other"]
    assert section_html(found).index("End.") < section_html(found).index('alt="other"')
    twice = section("![a](shown.png)\n\n![b](shown.png)", pictures={"shown.png": FIRST})
    assert [each.attributes["alt"] for each in read(section_html(twice)).all("img")] == ["a", "b"]


@pytest.mark.parametrize(
    "page", ["![a](lost.png)", "text ![a](lost.png)\n\n![b](there.png)", "![a](http://x/lost.png)"]
)
def test_a_picture_that_is_not_brought_is_an_error_with_the_remedy(page):
    with pytest.raises(DataError) as found:
        report_html(**content(sections=[section(page, pictures={"there.png": FIRST})]))
    message = str(found.value)
    assert "report section Section study: got the picture " in message
    assert "lost.png" in message and "there.png" in message
    assert "make that report again" in message
    with pytest.raises(DataError, match="expected one of none"):
        section_html(section("![a](lost.png)"))


def test_pictures_of_one_section_are_not_those_of_another():
    with pytest.raises(DataError, match="figure-2"):
        made(
            sections=[
                section("Text.", key="study", pictures={"figure-2.png": FIRST}),
                section("![a](figure-2.png)", key="search"),
            ]
        )
    same = {"picture.png": FIRST}, {"picture.png": SECOND}
    page = made(
        sections=[
            section("Text.", key=key, pictures=pictures)
            for key, pictures in zip(("grey-box", "white-box"), same, strict=True)
        ]
    )
    for key, expected in (("grey-box", FIRST), ("white-box", SECOND)):
        (image,) = part(page, key).all("img")
        assert base64.b64decode(image.attributes["src"].partition(",")[2]) == expected


@pytest.mark.parametrize(
    ("checks", "shown"),
    [
        ({}, []),
        (
            {"pass": 12, "fail": 1, "warn": 0, "not run": 2},
            [("pass", "12 pass"), ("fail", "1 fail"), ("warn", "0 warn"), ("not-run", "2 not run")],
        ),
    ],
)
def test_checks_are_counted_beside_the_report_that_has_them(checks, shown):
    page = made(sections=[section("Text.", checks=checks)])
    found = part(page, "study").of_class("checks")
    assert len(found) == bool(checks)
    spans = [each for line in found for each in line.all("span")]
    assert [(each.attributes["class"], each.text) for each in spans] == shown


# Escaping.


def test_html_in_any_text_stays_text():
    page = made(
        title=EVIL,
        facts={EVIL: EVIL},
        remarks=[EVIL],
        headlines=[
            headline(result=EVIL, quantity=EVIL, threat_model=EVIL),
        ],
        sections=[
            section(
                f"# {EVIL}\n\n{EVIL}\n\n- {EVIL}\n\n| {EVIL} |\n|---|\n| {EVIL} |\n\n`{EVIL}`",
                title=EVIL,
                results=[EVIL],
                run=ReportLink(text=EVIL, address=RUN),
                checks={"pass": 1},
            )
        ],
        steps=[
            step(
                name=EVIL,
                settings=EVIL,
                digest="<b>",
                run=ReportLink(text=EVIL, address=f'{RUN}"onclick="alert(1)'),
            )
        ],
    )
    # No tag and no attribute of it came to be, and all of it can be read.
    assert not list(page.all("script", "img", "b"))
    for each in page.all():
        assert not any(name.startswith("on") for name in each.attributes), each.attributes
    (title,) = page.all("title")
    assert title.text == EVIL
    # The page's title twice, the section's in nav and heading, dt and dd, the remark, three of the
    # headline, results and run, six of the Markdown, three of the step.
    assert page.text.count("<script>") == page.text.count("onerror=") == 21
    links = [each.attributes["href"] for each in page.all("a")]
    assert f'{RUN}"onclick="alert(1)' in links


@pytest.mark.parametrize(
    "markdown",
    [
        "<div onclick='alert(1)'>\n\ntext\n\n</div>",
        "</section></main><script>alert(1)</script>",
        "<!-- a comment -->",
        "text <b>bold</b> text",
        "<style>body { display: none }</style>",
    ],
)
def test_html_in_markdown_is_shown_and_not_done(markdown):
    body = read(section_html(section(markdown)))
    assert {each.tag for each in body.all()} <= {"p"}
    for word in re.findall(r"<[^<>]*>", markdown):
        assert word in body.text.replace("\n", "")


def test_a_script_in_an_address_of_markdown_is_no_link():
    for markdown in ("[a](javascript:alert(1))", "<javascript:alert(1)>", "[a](data:text/html,x)"):
        body = read(section_html(section(markdown)))
        assert not list(body.all("a")), markdown


def test_a_pictures_words_are_escaped():
    pictures = {"a.png": FIRST}
    body = read(section_html(section('![x" onerror="alert(1)](a.png "t<b>")', pictures=pictures)))
    for image in body.all("img"):
        assert set(image.attributes) <= {"src", "alt", "title"}
        assert image.attributes["src"].startswith("data:image/png;base64,")


def test_a_picture_that_is_shown_with_a_title_comes_once():
    pictures = {"a.png": FIRST}
    body = read(section_html(section('![a](a.png "a title")', pictures=pictures)))
    assert len(list(body.all("img"))) == 1


@pytest.mark.parametrize("name", ["a b.png", "epsilon (8).png", "naïve.png", "c&w.png"])
def test_a_picture_of_any_name_is_embedded(name):
    body = read(section_html(section("Text.", pictures={name: FIRST})))
    (image,) = body.all("img")
    assert base64.b64decode(image.attributes["src"].partition(",")[2]) == FIRST


# Numbers at a glance.


def cells(row):
    return [each.text for each in row.all("td")]


def test_a_line_has_the_number_its_interval_its_n_and_the_papers():
    (row,) = lines(made(headlines=[headline(paper=0.9979)]))
    assert cells(row) == [
        *("Table 4", "AUROC of MD on R(x)", "PGD-Linf on D(x)", "75.0 %", "[70.0, 82.0]"),
        *("", "99.8 %", "1,234"),
    ]
    (row,) = lines(
        made(headlines=[headline(is_share=False, value=22.309, low=21, high=23.5, paper=0.9)])
    )
    assert cells(row)[3:] == ["22.31", "[21, 23.5]", "", "0.9", "1,234"]


def test_what_there_is_not_is_left_out():
    (row,) = lines(made(headlines=[headline(images=None, low=None, high=None)]))
    assert cells(row)[3:] == ["75.0 %", "", "", "", ""]
    for low, high in ((None, 0.8), (0.7, None)):
        (row,) = lines(made(headlines=[headline(low=low, high=high)]))
        assert cells(row)[4] == ""


def test_a_result_is_named_once_at_its_first_line():
    rows = lines(made(headlines=[headline(), headline(), headline(result="Table 6"), headline()]))
    assert [cells(row)[0] for row in rows] == ["Table 4", "", "Table 6", "Table 4"]
    assert ["begins" in row.attributes.get("class", "") for row in rows] == [
        *(True, False, True, True),
    ]


def bar(**changes):
    """Circle, interval and the paper's marker, as numbers; None for what is not drawn."""
    (row,) = lines(made(headlines=[headline(**changes)]))
    pictures = list(row.all("svg"))
    if not pictures:
        return None
    (svg,) = pictures
    (circle,) = svg.all("circle")
    interval, *paper = svg.all("rect")
    middles = [float(each.attributes["x"]) + float(each.attributes["width"]) / 2 for each in paper]
    start, width = (float(interval.attributes[name]) for name in ("x", "width"))
    assert svg.attributes["aria-label"]
    return float(circle.attributes["cx"]), (start, start + width), *middles


def test_a_share_has_a_bar_in_percent_and_other_numbers_have_none():
    value, ends = bar()
    assert value == 75.0
    assert ends == pytest.approx((70.0, 82.0))
    assert bar(is_share=False) is None


def test_the_papers_marker_is_there_where_the_paper_has_a_number():
    assert len(bar()) == 2
    assert bar(paper=0.9979)[2] == pytest.approx(99.79)
    assert bar(paper=0.0)[2] == pytest.approx(0.0)
    (row,) = lines(made(headlines=[headline(paper=0.0)]))
    assert cells(row)[6] == "0.0 %"


def test_without_an_interval_its_bar_has_no_width():
    value, (low, high) = bar(low=None, high=None)
    assert value == low == high == 75.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"value": 1.0, "low": 0.98, "high": 1.2}, (100.0, (98.0, 100.0))),
        ({"value": 0.0, "low": -0.3, "high": 0.1}, (0.0, (0.0, 10.0))),
        ({"value": 1.7, "low": 1.5, "high": 1.9}, (100.0, (100.0, 100.0))),
        ({"value": -0.7, "low": -0.8, "high": -0.6}, (0.0, (0.0, 0.0))),
        ({"value": 0.5, "low": 0.5, "high": 0.5, "paper": 1.4}, (50.0, (50.0, 50.0), 100.0)),
        ({"value": 0.5, "low": 0.5, "high": 0.5, "paper": -0.4}, (50.0, (50.0, 50.0), 0.0)),
    ],
)
def test_a_bar_stays_between_0_and_100(changes, expected):
    found = bar(**changes)
    assert found[0] == pytest.approx(expected[0])
    assert found[1] == pytest.approx(expected[1])
    assert found[2:] == pytest.approx(expected[2:])


# Steps and runs.


def test_steps_say_whether_they_were_made_and_where_their_runs_are():
    page = made(
        steps=[
            step(run=ReportLink(text="abcdef", address=RUN)),
            step(name="detection", was_stored=True, digest="f" * 64),
        ]
    )
    (body,) = part(page, "steps").all("tbody")
    first, second = body.all("tr")
    assert cells(first) == ["CD-VAE", "train smoke", "0123456789ab", "made now", "abcdef"]
    assert cells(second) == ["detection", "train smoke", "f" * 12, "was stored", "not tracked"]
    assert [each.attributes["href"] for each in first.all("a")] == [RUN]
    assert not list(second.all("a"))


def test_a_section_leads_to_its_run_where_there_is_one():
    page = made(
        sections=[
            section("Text.", key="study"),
            section("Text.", key="search", run=ReportLink(text="not tracked")),
        ]
    )
    assert [each.attributes["href"] for each in part(page, "study").all("a")] == [RUN]
    assert not list(part(page, "search").all("a"))
    assert "MLflow run: not tracked" in part(page, "search").text

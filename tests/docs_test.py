"""The pages: plain words, short sentences, names that exist, commands with a meaning.

docs/lab holds dated notes: its links are checked, its language is not. The commands run
in docs_commands_test.py.
"""

import functools
import re
import shlex
from pathlib import Path

import pytest

import vse_jax
from tests.messages_test import texts
from vse_jax import command_line as cli
from vse_jax import main
from vse_jax.config import FIELDS

LAB = sorted(Path("docs/lab").glob("*.md"))
TOP = ("README", "CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT", "CHANGELOG")
DOCS = sorted(Path("docs").glob("*.md"))
REFERENCE = Path("docs/reference/vse_jax.md")
PAGES = [*(Path(f"{name}.md") for name in TOP), *DOCS]

# What DESIGN says instead: image, caption, element, most expensive, your own, new or
# again, except, initialised. Only words that have no other meaning in these pages.
UNWANTED = (
    *("pictures?", "sentences?", "members?", "summands?", "dearest", "one's own"),
    *("anew", "but for", "start values?", "at hand"),
)
MOST_WORDS = 35

OTHERS_FLAGS = {  # of hf, git, pytest, ruff and the services that pages tell of
    *("--local-dir", "--revision", "--requeue", "--signal", "--backbone_source"),
    *("--xla_gpu_deterministic_ops",),
}
PROGRAMS = {"main.py", "convert_torch_weights.py"}


@functools.cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@functools.cache
def prose(page: Path) -> str:
    """A page without code, tables, headings, images and the targets of its links."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)
    text = re.sub(r"^(?:    |\||#|!\[|<).*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`", "CODE", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def sentences(page: Path) -> list[str]:
    """Of its paragraphs and points, one after the other."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", prose(page))
    found = [re.split(r"(?<=[.!?])\s+", " ".join(block.split())) for block in blocks]
    return [sentence for block in found for sentence in block if sentence]


def code_lines(page: Path) -> list[str]:
    """The indented lines and those between fences; a \\ at an end joins two."""
    text = read(page).replace("\\\n", " ")
    fenced = re.findall(r"^```.*?\n(.*?)^```$", text, flags=re.M | re.S)
    indented = re.findall(r"^    (.*)$", text, flags=re.M)
    return [line.strip() for line in [*indented, *"\n".join(fenced).splitlines()]]


def by_page(find, pages=PAGES) -> list[str]:
    return [f"{page}: {found}" for page in pages for found in find(page)]


# ---- Language ------------------------------------------------------------------------


def test_words_are_the_fields_own():
    pattern = re.compile(rf"\b(?:{'|'.join(UNWANTED)})\b", re.I)

    def unwanted(page: Path) -> list[str]:
        return [f"{m[0]!r}" for m in pattern.finditer(read_words(page))]

    assert not by_page(unwanted)


def read_words(page: Path) -> str:
    """All that a person reads in a page: its code is left out."""
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)
    text = re.sub(r"^    .*$|`[^`]*`|\]\([^)]*\)", "", text, flags=re.M)
    return " ".join(text.split())


def test_sentences_are_short():
    def long(page: Path) -> list[str]:
        return [s for s in sentences(page) if len(s.split()) > MOST_WORDS]

    assert not by_page(long)


def test_the_readme_is_short():
    assert len(read(Path("README.md")).splitlines()) <= 120


# ---- Links and names -----------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", read(page), flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", [*PAGES, *LAB], ids=str)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_no_heading_stands_twice():
    def twice(page: Path) -> list[str]:
        titles = re.findall(r"^#+ (.*)$", read(page), flags=re.M)
        return [title for title in titles if titles.count(title) > 1]

    assert not by_page(twice)


def test_every_page_of_the_docs_is_in_the_index():
    index = read(Path("README.md"))
    assert not [page for page in DOCS if f"({page})" not in index]


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^::: vse_jax\.(\w+)$", read(REFERENCE), flags=re.M)
    assert sorted(listed) == sorted(vse_jax.__all__)


def test_the_citation_is_of_this_version():
    citation = Path("CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {vse_jax.__version__}\n" in citation


def test_paths_exist():
    folders = "tests|vse_jax|vse_search|configs|benchmarks|studies|examples|docs"
    pattern = rf"(?<![\w/.])(?:{folders})/[\w/.-]+\.(?:py|md|jsonl?|csv|png)\b"

    def missing(page: Path) -> list[str]:
        named = re.findall(pattern, read(page))
        return [name for name in named if not Path(name).exists()]

    made = {"benchmarks/results/gpu.json", "vse_jax/commands/NAME.py"}  # by a reader
    assert not [line for line in by_page(missing) if line.split(": ")[1] not in made]


def test_every_image_is_shown_or_linked():
    pages = "".join(map(read, [*PAGES, *LAB]))
    files = [path.name for path in Path("docs/images").glob("*.png")]
    assert not [name for name in files if f"images/{name})" not in pages]


def test_fields_exist():
    groups = {".".join(field.split(".")[:n]) for field in FIELDS for n in (1, 2)}

    def unknown(page: Path) -> list[str]:
        text = re.sub(
            r"^    (?:\$|error:) .*$", "", read(page), flags=re.M
        )  # shown wrong
        names = re.findall(r"(?<![\w/.])config\.([a-z_]+(?:\.[a-z_]+)*)", text)
        return [name for name in names if name not in {*FIELDS, *groups, "json", "py"}]

    assert not by_page(unknown)


def flags_of(program: str) -> set[str]:
    names = re.findall(
        r'flags\.DEFINE\w*\(\s*(?:cli\.[^"]*(?:"--\w+"\)|\(\)),\s*)?"([\w-]+)"',
        Path("vse_jax", program).read_text(encoding="utf-8"),
    )
    return {f"--{name}" for name in names} | {"--verbosity"}


def test_flags_exist():
    known = set.union(OTHERS_FLAGS, *map(flags_of, PROGRAMS))
    assert {"--workdir", "--to-torch"} <= known

    def unknown(page: Path) -> list[str]:
        # The official program's flags are the first cell of a row of flags.md.
        text = re.sub(r"^\|[^|]*\|", "", read(page), flags=re.M)
        spans = re.findall(r"`(--[a-z][\w-]*)", text)
        return [name for name in spans if name not in known]

    assert not by_page(unknown)


# ---- Commands ------------------------------------------------------------------------


def our_commands(page: Path) -> list[list[str]]:
    """The words of each line that starts one of our programs, from its name on."""
    found = []
    for line in code_lines(page):
        _, program, rest = line.partition("python main.py")
        if not program:
            _, program, rest = line.partition("python convert_torch_weights.py")
        if program and not line.startswith("$"):
            rest = rest.rstrip("'")  # the end of what ssh runs
            found.append([program.split()[1], *shlex.split(rest, comments=True)])
    return found


def problem(command: list[str]) -> str | None:
    """What is wrong with a command of ours before any file is read."""
    program, *arguments = command
    arguments = [a for a in arguments if a.startswith("--")]
    overrides = [a for a in arguments if a.startswith("--config.")]
    flags = dict(a.partition("=")[::2] for a in arguments if a not in overrides)
    if unknown := flags.keys() - flags_of(program):
        return f"no flag {', '.join(unknown)}"
    if (mode := flags.get("--mode", "train")) not in main.MODES:
        return f"no mode {mode}"
    config = flags.get("--config", "configs/coco_grid.py")
    if not config.startswith(("configs/", "examples/")):
        config = "configs/coco_grid.py"  # a run's own, which the reader has
    values = cli.read_config(config)
    values.search.token = "a token"  # where a shell would make one
    cli.final_config(values, ["--" + a.lstrip("-") for a in overrides])
    return None


@pytest.mark.parametrize("page", [*PAGES, *LAB], ids=str)
def test_commands_are_understood(page):
    for command in our_commands(page):
        assert problem(command) is None, command


def makefile_targets() -> set[str]:
    makefile = Path("Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):", makefile, re.M))


def test_targets_and_modules_exist():
    targets = makefile_targets()
    benchmarks = {f"bench-{path.stem}" for path in Path("benchmarks").glob("*.py")}

    def missing(page: Path) -> list[str]:
        text = read(page)
        asked = re.findall(r"(?:^    |`)make ([a-z][\w-]*)", text, flags=re.M)
        wrong = [f"make {t}" for t in asked if t not in targets | benchmarks]
        modules = re.findall(r"python -m ((?:benchmarks|studies|tests)[\w.]*)", text)
        paths = {m: Path(*m.split(".")) for m in modules}
        return wrong + [
            f"python -m {m}"
            for m, path in paths.items()
            if not path.with_suffix(".py").exists() and not path.is_dir()
        ]

    assert not by_page(missing, [*PAGES, *LAB])


def test_workflows_call_targets_alone():
    targets = makefile_targets()
    for file in Path(".github/workflows").glob("*.yml"):
        for command in re.findall(r"run: (.*)", file.read_text(encoding="utf-8")):
            program, target, python = command.split()
            assert (program, python) == ("make", "PYTHON=python")
            assert target in targets, command


def test_what_troubleshooting_quotes_is_a_text_of_the_program():
    """Where "…" stands, the program puts something in."""
    of_make = (
        Path("Makefile").read_text(encoding="utf-8").replace("$(PYTHON)", "python3")
    )
    known = "\n".join([of_make, *(text for _, text in texts())])
    page = read(Path("docs/troubleshooting.md"))
    quoted = re.findall(r"^\| `([^`]*)`", page, flags=re.M)
    parts = {
        part.strip()
        for line in quoted
        if line != "RESOURCE_EXHAUSTED"  # XLA's
        for part in re.split("…|error: ", line)
    }
    assert len(quoted) > 30
    assert not [part for part in parts if part not in known]

"""Links, anchors, toctrees, and citations of the docs are valid, checked without Sphinx."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = ("_build", "gallery", "reference")  # folders in docs/ that `make docs` generates
FOLDERS = (".github", "bench", "deploy", "docs", "examples", "experiments", "src", "tests")
PAGES = sorted(
    page
    for page in {*ROOT.glob("*.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.md"))}
    if not any(page.is_relative_to(DOCS / name) for name in GENERATED)
)
PAPER = r"([A-Z][\w-]+)(?: et al\.| and [A-Z]\w+),? \(?((?:19|20)\d\d)"


def without_code(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST generate them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", without_code(page), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        slug, number = re.sub(r"[^\w -]", "", words).replace(" ", "-"), 1
        unique = slug
        while unique in found:
            unique, number = f"{slug}-{number}", number + 1
        found.add(unique)
    return found


def papers(text: str) -> set[tuple[str, str]]:
    """The papers that a text cites, as (first author, year)."""
    return set(re.findall(PAPER, " ".join(text.split())))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_anchors_exist(page):
    text = without_code(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:href|src)="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_every_page_of_docs_is_in_the_site():
    listed = {"index"}
    for page in DOCS.glob("*.md"):
        for tree in re.findall(r"^```{toctree}\n(.*?)^```$", page.read_text(), re.S | re.M):
            for entry in tree.split("\n\n", 1)[1].split():
                matches = DOCS.glob(f"{entry}.md")
                listed |= {str(match.relative_to(DOCS).with_suffix("")) for match in matches}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES if DOCS in page.parents}
    assert pages <= listed


def test_every_cited_paper_is_in_the_bibliography():
    bibliography = (DOCS / "bibliography.md").read_text()
    known = papers(bibliography)
    for page in [page for page in PAGES if DOCS in page.parents]:
        text = page.read_text()
        assert papers(text) <= known, page.name
        for identifier in re.findall(r"arXiv:?\s(\d{4}\.\d{5})", text):
            assert identifier in bibliography, f"{page.name}: {identifier}"


def test_bibliography_has_no_duplicate_links():
    links = re.findall(r"\]\((https://[^)]+)\)", (DOCS / "bibliography.md").read_text())
    assert len(links) == len(set(links)) > 50

"""MkDocs calls these while it builds the site (``mkdocs.yml``). They let the build fail where readers would be misled.

Tables made from the code stand in place of ``<!-- generated: NAME -->``. Files outside docs/ that pages link to are
copied into the site. Every public definition on the API's page has a docstring. No page loads anything from elsewhere.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rlhf_bilevel.registries import METHODS
from site_tools.pages import LINK, ROOT, links
from site_tools.reference import GENERATED

AT_THE_TOP = ("CONTRIBUTING.md", "CHANGELOG.md")  # pages of the site, beside those in docs/
MARK = re.compile(r"<!-- generated: ([\w-]+) -->")
TO_A_FOLDER = re.compile(r"\[([^]]+)\]\(([^)#:]+)\)")  # there is none in the site: its name stays
LOADS = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>|"
                   r"<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>|@import[^;]*//[^;]*;")  # fmt: skip


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds each method's page to the navigation, in the order of the registry."""
    (reference,) = (part["Reference"] for part in config.nav or [] if "Reference" in part)
    (listed,) = (part["Methods"] for part in reference if "Methods" in part)
    written = {path.stem for path in Path(config.docs_dir).glob("methods/*.md")}
    if missing := [name for name in METHODS.ours if name not in written]:
        raise PluginError(f"method {missing[0]}: docs/methods/{missing[0]}.md is missing")
    listed += [{name: f"methods/{name}.md"} for name in METHODS.ours]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside docs/ that pages link to, at the same place below the site's top."""
    docs = Path(config.docs_dir)
    pages = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    wanted = {ROOT / name for name in AT_THE_TOP}
    for page in [*pages, *wanted]:
        targets = ((page.parent / target.partition("#")[0]).resolve() for target in links(page))
        wanted |= {
            place for place in targets if place.is_file() and docs not in place.parents and ROOT in place.parents
        }
    for place in sorted(wanted - {ROOT / "README.md"}):
        name = place.relative_to(ROOT).as_posix()
        if place.suffix == ".md" and name not in AT_THE_TOP:
            name += ".txt"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(place)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts in what is generated, and lets links out of docs/ lead to the copies in the site."""
    source, docs = Path(str(page.file.abs_src_path)), Path(config.docs_dir)

    def moved(match: re.Match[str]) -> str:
        target = match[1] or match[2]
        path, hash_, anchor = target.partition("#")
        place = (source.parent / path).resolve()
        if re.match(r"[a-z]+:|//", target) or not path or ROOT not in place.parents:
            return match[0]
        inside = place.relative_to(docs if docs in place.parents else ROOT).as_posix()
        if place == ROOT / "README.md":
            inside = "index.md"
        elif place.suffix == ".md" and docs not in place.parents and inside not in AT_THE_TOP:
            inside += ".txt"
        found = posixpath.relpath(inside, posixpath.dirname(page.file.src_uri) or ".")
        return match[0].replace(target, found + hash_ + anchor)

    for name in re.findall(r"^::: (\S+)", markdown, re.MULTILINE):
        if missing := undocumented(name):
            raise PluginError(f"without a docstring: {', '.join(missing)}")

    def named(match: re.Match[str]) -> str:
        return match[1] if (source.parent / match[2]).is_dir() else match[0]

    return MARK.sub(lambda match: GENERATED[match[1]](), LINK.sub(moved, TO_A_FOLDER.sub(named, markdown)))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """PluginError if the page would load something from another machine."""
    if found := LOADS.search(output):
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return output


def undocumented(name: str) -> list[str]:
    """The public definitions at this place, itself included, that have no docstring, not even an inherited one."""
    thing = found(name)
    if not inspect.ismodule(thing):
        return [each for each, what in {name: thing, **members(name, thing)}.items() if not inspect.getdoc(what)]
    here = {f"{name}.{key}": value for key, value in vars(thing).items() if getattr(value, "__module__", "") == name}
    public = {
        key: value for key, value in here.items() if callable(value) and not key.rsplit(".", 1)[1].startswith("_")
    }
    inner = {key: what for each, value in public.items() for key, what in members(each, value).items()}
    return [key for key, what in {name: thing, **public, **inner}.items() if not inspect.getdoc(what)]


def found(name: str) -> Any:
    """The module, or what a module has under that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, key = name.rpartition(".")
        return getattr(importlib.import_module(module), key)


def members(name: str, thing: Any) -> dict[str, Any]:
    """A class's own public functions and properties, as its instances show them."""
    if not inspect.isclass(thing):
        return {}
    fields = vars(thing).get("__annotations__", {})  # the default of one may be a function
    own = [key for key in vars(thing) if not key.startswith("_") and key not in fields]
    kinds = (property, classmethod, staticmethod)
    functions = [key for key in own if inspect.isfunction(vars(thing)[key]) or isinstance(vars(thing)[key], kinds)]
    return {f"{name}.{key}": getattr(thing, key) for key in functions}

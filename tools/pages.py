"""How a notebook becomes a page: nbdev's own processors, and ours.

Definitions: nbdev puts a heading, a signature and the docstring into the text after every exported cell, and
there the source says it all again. Here the source stands where it was derived, open for `#| exports`, folded
for `#| export` and `#| exporti`; signatures, parameters and methods of all public definitions stand together
in a last section, under the anchors that nbdev's links lead to. It reads the exported module, runs nothing.
Folds: imports and drawing code are folded; what a folded solution prints stays folded with it (styles.css).
Badges: nothing is fetched from Colab; each chapter of the lesson has the list of symbols one click away.
Tables: Quarto takes the widths of a wide table's columns from its dashes, so these follow the text.
"""
import ast
import io
import re
import tokenize
from html import escape

from execnb.nbio import mk_cell
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults, add_show_docs, exec_show_docs, fdiv, mv_exports, rm_export

from notebooks import LIBRARY

WIDTH = 88  # letters a line of a signature, as many as a page shows
SHOWN_BY_WISH = {"code-fold:", "echo:", "include:", "hide", "export", "exports", "exporti"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def comments(text: str) -> dict[int, str]:
    "The comment behind the code of each line, by the number of the line."
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    return {t.start[0]: t.string.lstrip("#! ") for t in tokens
            if t.type == tokenize.COMMENT and t.line[:t.start[1]].strip()}


def public(node: ast.AST) -> bool:
    "Whether a definition is one for other people."
    return isinstance(node, Definition) and not node.name.startswith("_")


def with_default(arg: ast.arg, default: ast.expr | None) -> str:
    "A parameter as it is written."
    text = ast.unparse(arg)
    if default is None: return text
    return f"{text} = {ast.unparse(default)}" if arg.annotation else f"{text}={ast.unparse(default)}"


def parameters(args: ast.arguments) -> list[tuple[str, ast.arg | None]]:
    "What stands between the brackets, one by one; a bare * or / has no parameter."
    places = [*args.posonlyargs, *args.args]
    defaults = [*[None] * (len(places) - len(args.defaults)), *args.defaults]
    found: list[tuple[str, ast.arg | None]] = [
        (with_default(a, d), a) for a, d in zip(places, defaults, strict=True)]
    if args.posonlyargs: found.insert(len(args.posonlyargs), ("/", None))
    if args.vararg: found.append((f"*{ast.unparse(args.vararg)}", args.vararg))
    elif args.kwonlyargs: found.append(("*", None))
    found += [(with_default(a, d), a) for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return found + ([(f"**{ast.unparse(args.kwarg)}", args.kwarg)] if args.kwarg else [])


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def made_of(node: Definition) -> list[tuple[str, ast.AST | None]]:
    "What one gives to a function or, to make one of it, to a class."
    if isinstance(node, FUNCTIONS): return parameters(node.args)
    if is_dataclass(node):
        fields = (part for part in node.body if isinstance(part, ast.AnnAssign))
        return [(ast.unparse(field), field) for field in fields]
    init = next((part for part in node.body if isinstance(part, FUNCTIONS) and part.name == "__init__"), None)
    return parameters(init.args)[1:] if init else []


def signature(node: Definition) -> str:
    "Its head, on one line if that is short enough."
    given = [text for text, _ in made_of(node)]
    if isinstance(node, ast.ClassDef):
        head, end = f"class {node.name}", ""
    else:
        head = f"{'async ' * isinstance(node, ast.AsyncFunctionDef)}def {node.name}"
        end = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if isinstance(node, ast.ClassDef) and not given: return head
    line = f"{head}({', '.join(given)}){end}"
    if len(line) <= WIDTH: return line
    return "\n".join([f"{head}(", *(f"    {text}," for text in given), f"){end}"])


def in_words(text: str) -> str:
    "A docstring or a comment as markdown that says what it says: no star or underscore is lost."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_^~$<\[\]|])", r"\\\1", part)
                   for part in parts)


def meanings(node: Definition, notes: dict[int, str]) -> list[tuple[str, str]]:
    "What the comments say of the parameters: each is for the last one on its line, as nbdev has it."
    parts = {part.end_lineno: part.arg if isinstance(part, ast.arg) else part.target.id
             for _, part in made_of(node) if part is not None}
    if isinstance(node, FUNCTIONS):
        if node.returns: parts[node.returns.end_lineno] = "returns"
        parts.pop(node.body[0].lineno, None)  # a comment there is for what it does
    return [(name, notes[line]) for line, name in parts.items() if line in notes]


def methods(node: Definition) -> list[str]:
    "The public methods of a class: each with its parameters and docstring, at an anchor of its own."
    found = []
    for part in node.body if isinstance(node, ast.ClassDef) else []:
        if not isinstance(part, FUNCTIONS) or not public(part): continue
        is_method = not any("property" in ast.unparse(decorator) for decorator in part.decorator_list)
        given = ", ".join(text for text, _ in parameters(part.args)[1:])
        head = escape(f"{part.name}({given})" if is_method else part.name, quote=False)
        doc = " ".join((ast.get_docstring(part) or "").split())
        anchor = f"{node.name}.{part.name}".lower()
        found.append(f'- <code id="{anchor}">{head}</code>{": " * bool(doc)}{in_words(doc)}')
    return found


def entry(node: Definition, module: str, notes: dict[int, str], lookup: NbdevLookup) -> str:
    "Heading, link to the source, signature, docstring, parameters that have a comment, methods."
    parts = [f"### {in_words(node.name)} {{#{node.name.lower()}}}"]
    if found := lookup[f"{module}.{node.name}"]:
        address = f"{found[2]}#L{node.lineno}"
        parts.append(f'<a class="to-source" href="{address}" aria-label="source of {node.name}">source</a>')
    parts.append(f"```python\n{signature(node)}\n```")
    if doc := ast.get_docstring(node): parts.append(in_words(doc))
    if rows := meanings(node, notes):
        lines = [f"| <code>{name}</code> | {in_words(note)} |" for name, note in rows]
        parts.append("\n".join(["| given | meaning |", "|---|---------|", *lines]))
    if listed := methods(node): parts.append("\n".join(listed))
    return "\n\n".join(parts)


def reference(module: str) -> list[str]:
    "The cells of the last section of a page; none for a module without public definitions."
    path = LIBRARY.joinpath(*module.split(".")).with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    nodes = [node for node in ast.parse(text).body if public(node)]
    name = f"{LIBRARY.name}.{module}"
    notes, lookup = comments(text), NbdevLookup()
    head = f"## Reference\n\nThe public names of <code>{name}</code>."
    return [head, *(entry(node, name, notes, lookup) for node in nodes)] if nodes else []


def slug(title: str) -> str:
    "The anchor that Quarto gives a heading."
    return re.sub(r"[^\w.-]+", "-", re.sub(r"[^\w\s.-]", "", title)).strip("-").lower()


def other_anchor(text: str, taken: set[str]) -> str:
    "A section of the text that is called like a definition (Summary) leaves that anchor to the definition."
    def renamed(heading: re.Match) -> str:
        own = slug(heading[1])
        return f"{heading[0]} {{#{own}-section}}" if own in taken else heading[0]
    return re.sub(r"^#{2,6} +([^{}\n]+?) *$", renamed, text, flags=re.M)


class Definitions:
    "A processor: unfolds no cell that is exported unseen, and puts the reference at the foot."
    def __init__(self, nb): self.nb = nb

    def begin(self):
        module = None
        for cell in self.nb.cells:
            if cell.cell_type != "code": continue
            directives = cell.directives_
            module = (directives.get("default_exp") or [module])[0]
            names = [node.name for node in cell.parsed_() or [] if public(node)]
            if names and "hide" not in directives and directives.keys() & {"export", "exporti"}:
                for unseen in ("export", "exporti"): directives.pop(unseen, None)
                folded = f'#| code-fold: true\n#| code-summary: "Source of {", ".join(names)}"\n'
                cell.source = folded + cell.source
        if not module: return
        cells = reference(module)
        taken = set(re.findall(r"\{#([\w.]+)\}$", "\n".join(cells), re.M))
        for cell in self.nb.cells:
            if cell.cell_type == "markdown": cell.source = other_anchor(cell.source, taken)
        self.nb.cells += [mk_cell(text, "markdown") for text in cells]


def is_import(cell) -> bool:
    "Whether a cell does nothing but import."
    nodes = cell.parsed_() or []
    return bool(nodes) and all(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes)


def is_drawing(cell) -> bool:
    "Whether a cell is some lines that draw a figure, or a definition of how one is drawn."
    nodes = cell.parsed_() or []
    lines = sum(bool(line.strip()) for line in cell.source.splitlines() if not line.startswith("#|"))
    defines = bool(nodes) and all(isinstance(node, ast.FunctionDef) for node in nodes)
    return lines >= 5 and "plt." in cell.source and ("fig-alt:" in cell.directives_ or defines)


class Folds:
    "A processor: folds imports and drawing code that does not say how it wants to be shown; marks solutions."
    def __init__(self, nb): self.nb = nb

    def begin(self):
        cells = []
        for cell in self.nb.cells:
            if cell.cell_type == "code" and not cell.directives_.keys() & SHOWN_BY_WISH:
                name = "Imports" if is_import(cell) else "How it is drawn" if is_drawing(cell) else None
                if name: cell.source = f'#| code-fold: true\n#| code-summary: "{name}"\n{cell.source}'
            solved = cell.cell_type == "code" and re.search(r'#\| code-summary: "Solution', cell.source)
            cells += [fdiv(".solution"), cell, fdiv()] if solved else [cell]
        self.nb.cells = cells


def cells_of(row: str) -> list[str]:
    "What stands in a row of a table, as it is read: links without their addresses."
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", row.strip().removeprefix("|").removesuffix("|"))
    return [part.strip() for part in re.split(r"(?<!\\)\|", text)]


def fit_dashes(text: str) -> str:
    "As many dashes a column as its longest text has letters, from its longest word to 60."
    lines = text.splitlines()
    for i, line in enumerate(lines[1:], 1):
        if not re.fullmatch(r"\s*\|(\s*:?-+:?\s*\|)+\s*", line) or "|" not in lines[i - 1]: continue
        rows = [lines[i - 1]]
        for row in lines[i + 1:]:
            if not row.lstrip().startswith("|"): break
            rows.append(row)
        columns = zip(*(cells_of(row) for row in rows), strict=False)
        wide = [max(3, *(max(len(word) for word in cell.split() or [""]) for cell in column),
                    min(60, max(map(len, column)))) for column in columns]
        ends = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(ends) != len(wide): continue
        lines[i] = "|" + "|".join(f"{':' * (end[0] == ':')}{'-' * n}{':' * (end[-1] == ':')}"
                                  for end, n in zip(ends, wide, strict=True)) + "|"
    return "\n".join(lines)


def fit_tables(cell):
    "A processor: the tables of the text and those that a cell gives."
    if cell.cell_type == "markdown": cell.source = fit_dashes(cell.source)
    for output in cell.get("outputs", []):
        if "text/markdown" in output.get("data", {}):
            output["data"]["text/markdown"] = fit_dashes("".join(output["data"]["text/markdown"]))


BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\((\S*?/nbs/(\S*)\.ipynb)\)")


def plain_badge(cell):
    "A processor: Colab's badge as words, not a picture on another host; in the lesson a link to the symbols."
    if cell.cell_type != "markdown" or not (badge := BADGE.search(cell.source)): return
    cell.source = BADGE.sub(r"[Open in Colab](\1)", cell.source, count=1)
    if re.match(r"\d\d_", badge[2]): cell.source += " · [Symbols](glossary.ipynb#symbols)"


class Pages(FilterDefaults):
    "nbdev's processors for the pages, and ours."
    def base_procs(self):
        kept = [p for p in super().base_procs() if p not in (add_show_docs, exec_show_docs, mv_exports)]
        at = kept.index(rm_export)
        return [*kept[:at], Definitions, Folds, *kept[at:], fit_tables, plain_badge]

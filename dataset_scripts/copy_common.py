"""Copy what the data set scripts share from ucmerced.py, where it is kept, into all others (`make style`)."""

from pathlib import Path


BEGIN, END = "# --- common to all dataset scripts: begin ---\n", "# --- common to all dataset scripts: end ---\n"
FIRST_IMPORT = "import argparse\n"


def main() -> None:
    """Rewrite the scripts whose common part differs, or which lack an import of it; ruff sorts them afterwards."""
    folder = Path(__file__).parent
    kept = (folder / "ucmerced" / "ucmerced.py").read_text(encoding="utf-8")
    common = kept[kept.index(BEGIN) : kept.index(END)]
    imports = kept[kept.index(FIRST_IMPORT) : kept.index(BEGIN)].splitlines()
    for path in sorted(folder.glob("*/*.py")):
        text = path.read_text(encoding="utf-8")
        if path.stem == path.parent.name and BEGIN in text:
            lacking = "".join(f"{line}\n" for line in imports if line and line not in text[: text.index(BEGIN)])
            new = text[: text.index(BEGIN)].replace(FIRST_IMPORT, FIRST_IMPORT + lacking, 1)
            new += common + text[text.index(END) :]
            if new != text:
                path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

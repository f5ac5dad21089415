"""Copy the common part of the data set scripts from ucmerced.py, where it is kept, into all others (`make style`)."""

from pathlib import Path


BEGIN, END = "# --- common to all dataset scripts: begin ---\n", "# --- common to all dataset scripts: end ---\n"


def main() -> None:
    """Rewrite the scripts whose common part differs."""
    folder = Path(__file__).parent
    kept = (folder / "ucmerced" / "ucmerced.py").read_text(encoding="utf-8")
    common = kept[kept.index(BEGIN) : kept.index(END)]
    for path in sorted(folder.glob("*/*.py")):
        text = path.read_text(encoding="utf-8")
        if path.stem == path.parent.name and BEGIN in text:
            new = text[: text.index(BEGIN)] + common + text[text.index(END) :]
            if new != text:
                path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

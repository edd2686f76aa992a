"""The examples of callbacks/README.md, run in order."""

import re
from pathlib import Path

import stagewise

README = Path(stagewise.__file__).parent / "callbacks" / "README.md"


def test_the_examples_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 9
    namespace = {"__name__": "readme"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "('heads', 'epochs', 'kept'), ('top', 'steps'" in printed
    assert "tensor(1.)" in printed  # the ramp's end
    assert "collapse: recall of rare" in printed and "red flag 'stuck': val/median_loss above" in printed
    assert printed.rstrip().endswith("{'epoch': 1}")


def test_every_callback_has_a_section():
    text = README.read_text(encoding="utf-8")
    import stagewise.callbacks as ours

    assert not [name for name in ours.__all__ if name not in text and name != "RunReport"]

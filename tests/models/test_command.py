"""How commands end."""

import pytest

from models import command
from models.errors import UserError


def test_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "There is no [bold]file[/] " + "x" * 200 + "; name another."

    def fail() -> None:
        raise UserError(sentence)

    assert command.run(lambda: print("done")) == 0
    assert capsys.readouterr() == ("done\n", "")
    assert command.run(fail) == 2
    assert capsys.readouterr() == ("", f"error: {sentence}\n")


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: print(1 / 0))

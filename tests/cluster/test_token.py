"""The token of a cluster on this machine: in the home for its owner alone, or in the environment."""

import os

from bcgc_jax.cluster import engine


def test_a_token_is_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    engine._have_token()
    path = tmp_path / ".ray" / "auth_token"
    assert (path.stat().st_mode & 0o777, len(path.read_text())) == (0o600, 64)
    path.write_text("one that was there")
    engine._have_token()
    assert path.read_text() == "one that was there"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_home_that_cannot_be_written_to_is_no_hindrance(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    engine._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    engine._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == engine._TOKEN
    assert engine._TOKEN not in (tmp_path / "file").read_text()

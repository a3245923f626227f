"""The token of a cluster on this machine: that of the home, or one in the environment; none is written."""

import os

from bcgc_jax.cluster import engine


def test_a_token_is_the_users_own_or_one_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    engine._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "the user's"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    engine._have_token()
    assert os.environ["RAY_AUTH_TOKEN"] == engine._TOKEN
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("one that was there")
    engine._have_token()
    assert "RAY_AUTH_TOKEN" not in os.environ

"""Which names a config may call. Those of this project are in tests/test_config.py."""

import sys

import pytest
from omegaconf import OmegaConf

from wgangp.targets import LOG_FILE, check_hydra, check_settings, resolve_target

HANDLER = {"class": "logging.FileHandler"}
STREAM = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}


def settings(**groups):
    """Hydra's settings, as it composes them."""
    return OmegaConf.create({"verbose": False} | groups)


@pytest.mark.parametrize(
    "groups",
    [
        {"launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}},
        {"launcher": {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}},
        {"job_logging": {"handlers": {"console": STREAM, "file": HANDLER | {"filename": LOG_FILE}}}},
        {"job_logging": {"formatters": {"simple": {"()": "colorlog.ColoredFormatter"}}}},
        {"job": {"config": {"override_dirname": {"kv_sep": "="}}}, "sweep": {"dir": "${hydra:runtime.cwd}/runs"}},
        {"job_logging": None, "callbacks": {}, "runtime": "???"},
    ],
    ids=str,
)
def test_settings_of_hydra_and_its_plugins_are_accepted(groups):
    check_settings(settings(**groups))


@pytest.mark.parametrize(
    "groups, message",
    [
        ({"job_logging": {"handlers": {"file": HANDLER}}}, "must be one of logging.Stream"),
        (
            {"job_logging": {"handlers": {"file": HANDLER | {"filename": "/home/me/x"}}}},
            "must be one of logging.Stream",
        ),
        (
            {"job_logging": {"handlers": {"file": HANDLER | {"filename": LOG_FILE}}}, "job": {"name": "../x"}},
            "FileHand",
        ),
        ({"job_logging": {"handlers": {"file": HANDLER | {"filename": LOG_FILE, "mode": "w"}}}}, "FileHandler: must"),
        ({"job": {"env_set": {"PATH": "here"}}}, r"hydra\.job\.env_set\.PATH = here: variables such as PATH"),
        ({"callbacks": {"x": {"_target_": "os.system"}}}, r"hydra\.callbacks\.x\._target_ = os\.system: only names"),
        ({"callbacks": {"x": {"_target_": "wgangp.cli.main"}}}, "wgangp.cli.main: only names"),
        ({"callbacks": {"x": {"_target_": "my_package.Callback"}}}, r"only names under [\w. ]+ can be used$"),
        ({"callbacks": {"x": {"_target_": ["os", "system"]}}}, "only names"),
        ({"callbacks": {"x": {"y": [{"_target_": "builtins.eval"}]}}}, r"x\.y\.0\._target_ = builtins\.eval: only"),
        ({"callbacks": {"x": {"_target_": "${..y}"}, "y": "os.system"}}, "os.system: only names"),
        ({"callbacks": {"x": {"_target_": "${oc.env:NO_NAME_YET}"}}}, "NO_NAME_YET.: only names"),
        ({"launcher": {"_target_": "hydra_plugins.os.system"}}, "this name does not exist"),
        (
            {"launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.logging.os.system"}},
            "does not exist|only classes and functions that are defined there",
        ),
        (
            {"callbacks": {"x": {"_target_": "hydra._internal.core_plugins.basic_launcher.configure_log"}}},
            "only classes and functions that are defined there",
        ),
        (
            {"job_logging": {"handlers": {"x": {"class": "os.system"}}}},
            r"handlers\.x\.class = os\.system: must be one of",
        ),
        ({"job_logging": {"handlers": {"x": {"class": "logging.handlers.QueueHandler"}}}}, "must be one of"),
        ({"hydra_logging": {"filters": {"x": {"()": "os.system"}}}}, r"filters\.x\.\(\) = os\.system: must be one of"),
        (
            {"job_logging": {"handlers": {"x": STREAM | {"stream": "ext://os.environ"}}}},
            "ext://os.environ: must be one",
        ),
    ],
    ids=str,
)
def test_foreign_names_are_refused(groups, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_settings(settings(**groups))
    assert "\n" not in str(caught.value) and "trust=" not in str(caught.value)


def test_sweeper_of_optuna_takes_its_samplers_only():
    sampler = {"sampler": {"_target_": "optuna.samplers.os.system"}}
    with pytest.raises(
        ValueError, match=r"sampler\._target_ = optuna\.samplers\.os\.system: (optuna cannot|this|only)"
    ):
        check_settings(settings(sweeper=sampler))


def test_every_config_is_checked_that_hydra_composes(configure):
    with check_hydra():
        with pytest.raises(ValueError, match=r"os\.system: only names under"):
            configure("+hydra.callbacks.x._target_=os.system")
        configure()
    configure("+hydra.callbacks.x._target_=os.system")  # that of another program, which does not call it either


def test_no_package_is_imported_for_configs(configure, tmp_path):
    with check_hydra():
        for path in ("pkg://antigravity", "pkg://wgangp.figures", "structured://x"):
            with pytest.raises(ValueError, match=rf"hydra\.searchpath: {path} is no folder of configs"):
                configure(f"hydra.searchpath=[{path}]")
        configure(f"hydra.searchpath=[file://{tmp_path}]")
    assert "antigravity" not in sys.modules


def test_variables_that_hydra_copies_are_accepted(configure, monkeypatch):
    monkeypatch.setenv("COPIED", "1")
    check_settings(settings(job={"env_set": {"COPIED": "1"}, "env_copy": ["COPIED"]}))


def test_config_cannot_name_a_function_that_writes_files():
    with pytest.raises(ValueError, match=r"data\.x = wgangp\.data\.download\.download: only names under"):
        resolve_target("wgangp.data.download.download", "data.x", ("wgangp.data.",))
    assert resolve_target("wgangp.data.toy.gaussians8", "data", ("wgangp.data.",)).__name__ == "gaussians8"

"""Keys and types of the configs: they are read from the signatures of the functions that take them."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import wgangp
from wgangp import cli, config
from wgangp.analysis import analyze
from wgangp.compare import compare
from wgangp.config import CONF
from wgangp.figures.study import reproduce
from wgangp.optim import build_average
from wgangp.penalty import GradientPenalty
from wgangp.sample import sample
from wgangp.schema import check_keys, read_types, register_schema, suggest, to_arguments
from wgangp.train import Clip, train


def draw(count: int, rate: float = 0.5, name: str | None = None, seeds: list[int] = ()) -> Path:
    """A function with the types that configs have."""


SCHEMA = register_schema("test", read_types(draw, "count", "rate", "name", "seeds") | {"group": {"size": int}})
VALUES = {"count": 3, "rate": 0.1, "name": None, "seeds": [1], "group": {"size": 2}}


def values(**changes):
    return OmegaConf.create(VALUES | changes)


class TestTypesOf:
    def test_returns_the_types_of_the_named_parameters(self):
        assert read_types(draw, "rate", "name") == {"rate": float, "name": str | None}

    def test_returns_all_parameters_by_default(self):
        assert list(read_types(draw)) == ["count", "rate", "name", "seeds"]


class TestCheckKeys:
    def test_accepts_what_fits(self):
        check_keys(values(), SCHEMA)
        check_keys(values(name="a", rate=1), SCHEMA)

    @pytest.mark.parametrize(
        "changes",
        [*({"count": value} for value in ("abc", 1.5, None)), {"rate": "abc"}, {"seeds": [0.5]}, {"group": 3}],
        ids=str,
    )
    def test_refuses_another_type(self, changes):
        with pytest.raises(ValueError, match=f"^{next(iter(changes))}.* must be "):
            check_keys(values(**changes), SCHEMA)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"cuont": 1}, r"^cuont is unknown; the keys of the config are count, rate, .*Did you mean count\?$"),
            (
                {"group": {"size": 1, "sise": 2}},
                r"^group\.sise is unknown; the keys of group are size. Did you mean group\.size\?$",
            ),
            ({"zzz": 1}, r"^zzz is unknown; the keys of the config are count, rate, name, seeds, group$"),
        ],
    )
    def test_refuses_an_unknown_key_in_one_line_and_suggests_the_nearest(self, changes, message):
        with pytest.raises(ValueError, match=message) as caught:
            check_keys(values(**changes), SCHEMA)
        assert "\n" not in str(caught.value)

    def test_refuses_keys_without_a_value(self):
        with pytest.raises(ValueError, match=r"group\.size: no value is given\. Add group\.size=VALUE"):
            check_keys(values(group={"size": "???"}), SCHEMA)


def test_arguments_are_plain_and_resolved():
    arguments = to_arguments(OmegaConf.create(VALUES | {"count": "${group.size}"}), SCHEMA)
    assert arguments == VALUES | {"count": 2} and type(arguments["seeds"]) is list
    with pytest.raises(ValueError, match="foo is unknown"):
        to_arguments(values(foo=1), SCHEMA)


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("train.stps", "train.steps"),
        ("sed", "seed"),
        ("steps", "train.steps"),  # the same key of another group
        ("train.lr", "optim.lr"),
        ("critic.width", "networks.critic.width"),
        ("trian.steps", "train.steps"),
        ("trian.stps", "train.steps"),
        ("train.foo", None),
        ("zzz", None),
        ("zzz.foo", None),
    ],
)
def test_suggestion_is_the_nearest_name(name, nearest):
    names = ["train", "train.steps", "train.critic_steps", "train.compile", "seed", "optim.lr"]
    names += ["networks.generator.width", "networks.critic.width"]
    assert suggest(name, names) == (f". Did you mean {nearest}?" if nearest else "")
    assert suggest(name, []) == ""


class TestConfigs:
    """The configs in conf/ and the signatures have the same keys and defaults."""

    @pytest.mark.parametrize(
        "name, function, added, left_out",
        [
            ("sample", sample, set(), set()),
            ("lipschitz", analyze, set(), set()),
            ("compare", compare, set(), set()),
            ("reproduce", reproduce, {"figure"}, {"name"}),  # a group; its choice is the name
        ],
    )
    def test_keys_of_a_command_are_the_parameters_of_its_function(self, name, function, added, left_out):
        keys = OmegaConf.load(CONF / f"{name}.yaml").keys() - {"defaults", "hydra"}
        parameters = {name.rstrip("_") for name in inspect.signature(function).parameters}  # class is a keyword
        assert keys | added == parameters - left_out

    def test_keys_under_train_are_parameters(self):
        keys = set(OmegaConf.load(CONF / "config.yaml").train)
        group = next(field.type for field in dataclasses.fields(config.SCHEMA) if field.name == "train")
        assert keys == {field.name for field in dataclasses.fields(group)}
        assert keys - set(inspect.signature(train).parameters) == {"channels_last", "on_nonfinite", "rank_timeout"}
        assert set(inspect.signature(train).parameters) - keys == set(config.NOT_KEYS)

    def test_keys_under_ema_are_parameters_of_the_function_that_builds_the_average(self):
        keys = set(OmegaConf.load(CONF / "config.yaml").ema)
        assert keys == set(inspect.signature(build_average).parameters) - {"generator"}

    def test_keys_under_clip_are_fields(self):
        cfg = OmegaConf.load(CONF / "config.yaml")
        assert {*cfg.clip, "on_nonfinite"} == set(inspect.signature(Clip).parameters)
        assert cfg.train.on_nonfinite == Clip().on_nonfinite

    def test_defaults_in_a_config_are_those_of_the_signature(self):
        nodes = [(OmegaConf.load(CONF / "config.yaml").train, train), (OmegaConf.load(CONF / "config.yaml").clip, Clip)]
        nodes += [(OmegaConf.load(CONF / "sample.yaml"), sample), (OmegaConf.load(CONF / "lipschitz.yaml"), analyze)]
        nodes += [(OmegaConf.load(CONF / "penalty" / "two_sided.yaml"), GradientPenalty)]
        for node, function in nodes:
            for name, parameter in inspect.signature(function).parameters.items():
                if name not in node or OmegaConf.is_interpolation(node, name):  # it follows another key
                    continue
                if parameter.default is not inspect.Parameter.empty:
                    assert node[name] == parameter.default, name

    def test_types_are_those_of_the_signature(self):
        types = read_types(train)
        assert types["steps"] is int and types["decay_steps"] == int | None
        for schema, values in ((config.SCHEMA, {"train": {"steps": "abc"}}), (cli.SCHEMAS["sample"], {"n": "abc"})):
            with pytest.raises(Exception, match="could not be converted to Integer"):
                OmegaConf.merge(OmegaConf.structured(schema), values)

    def test_key_is_declared_in_one_signature_only(self):
        """No second list of keys has to be changed if a key is added."""
        counts = {}
        for path in Path(wgangp.__file__).parent.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    counts.setdefault(node.target.id, set()).add(path.name)
                elif isinstance(node, ast.arg) and node.annotation is not None:
                    counts.setdefault(node.arg, set()).add(path.name)
        keys = ["sample_every", "checkpoint_every", "lipschitz_every", "report_size", "decay_steps", "sync_batch_norm"]
        assert {key: counts[key] for key in keys} == {key: {"train.py"} for key in keys}
        assert counts["channels_last"] == {"config.py"} and counts["rank_timeout"] == {"distributed.py"}

"""Runs in BackdoorBench's Python, in a folder of ours: ``launch_defense.py SCRIPT HOME FLAGS...``.

The script ``HOME/SCRIPT`` is not changed. Every script gets its data and its victim from
one function, ``load_attack_result``; here it answers from ``given.npz`` and ``victim.pt``. What the
script writes lies below ``record/`` in this folder, nothing in the checkout.

A victim that BackdoorBench does not know is built by our package, which this Python then needs.
"""

import argparse
import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

# beside this file
import launch  # type: ignore[import-not-found]
import numpy as np
import torch
from PIL import Image

sys.dont_write_bytecode = True


# scripts that build the network with masks in its BatchNorms, and where their PreAct-ResNet-18 is
MASKED = {
    "anp": "utils.defense_utils.anp.anp_model.preact_anp",
    "rnp": "utils.defense_utils.rnp.rnp_model.preact_rnp",
}


class Rows(torch.utils.data.Dataset[Any]):
    """Images uint8 (n, h, w, 3) and labels as a data set of torchvision's."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.data = images
        self.targets = [int(label) for label in labels]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, place: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[place]), self.targets[place]


def stand_in(script: str, victim: dict[str, Any]) -> None:
    """Have a script build the victim's network where it asks for one of BackdoorBench's, as our own
    trainings start from it: some take their first layer from the images, or are pretrained.
    """
    import utils.aggregate_block.model_trainer_generate as theirs  # type: ignore[import-not-found]

    # our package, should this Python not have it; last, for its folders have common names
    sys.path.append(str(Path(__file__).parents[2]))
    from backdoorbench_ext.models import create

    def made(num_classes: int, norm_layer: Any = None) -> torch.nn.Module:
        net: torch.nn.Module = create(victim["ours"], num_classes)
        net.load_state_dict(victim["fresh"])
        if norm_layer is not None:
            exchange_norms(net, norm_layer)
        return net

    # what else they say of it (its name, the images' size) is the victim's
    theirs.generate_cls_model = lambda name, num_classes, *rest, **more: made(num_classes)
    if script in MASKED:
        importlib.import_module(MASKED[script]).PreActResNet18 = made  # type: ignore[attr-defined]


def exchange_norms(net: torch.nn.Module, norm_layer: Any) -> None:
    """Put a norm of the class ``norm_layer`` in the place of every BatchNorm of images."""
    for place, norm in list(net.named_modules()):
        if isinstance(norm, torch.nn.BatchNorm2d):
            own = norm_layer(norm.num_features, eps=norm.eps, momentum=norm.momentum)
            net.set_submodule(place, own)


def save_the_trained() -> None:
    """Have ``nc`` save the network that it trained, whose numbers it tells. Behind its trainer's
    back it makes the victim anew, and saves that (defense/nc.py, lines 760 and 850).
    """
    import utils.save_load_attack as save_load  # type: ignore[import-not-found]
    from utils.trainer_cls import PureCleanModelTrainer as Trainer  # type: ignore[import-not-found]

    trained: list[torch.nn.Module] = []
    train = Trainer.train_with_test_each_epoch_on_mix
    save = save_load.save_defense_result

    def training(self: Any, *args: Any, **more: Any) -> Any:
        trained[:] = [self.model]
        return train(self, *args, **more)

    def saving(**given: Any) -> None:
        if trained:
            given["model"] = trained[0].cpu().state_dict()
        save(**given)

    Trainer.train_with_test_each_epoch_on_mix = training
    save_load.save_defense_result = saving


def answer(dataset: str, told: dict[str, Any], some_marked: bool) -> Any:
    """What takes the place of ``load_attack_result``.

    Args:
        dataset: its name, as the script was told.
        told: what it is told of the victim.
        some_marked: mark the first image, as it is, for scripts that end where none is.
    """
    import utils.aggregate_block.dataset_and_transform_generate as source  # type: ignore[import-not-found]
    from torchvision import transforms
    from utils.bd_dataset_v2 import (  # type: ignore[import-not-found]
        dataset_wrapper_with_transform,
        prepro_cls_DatasetBD_v2,
    )

    with np.load("given.npz", allow_pickle=False) as file:
        given = dict(file)
    height, width = given["train_images"].shape[1:3]
    mean = given["mean"].tolist()
    std = given["std"].tolist()
    launch.answered(given["train_images"], int(told["num_classes"]))
    source.get_dataset_normalization = lambda *_: transforms.Normalize(mean, std)

    def sets() -> dict[str, Any]:
        """The four data sets of a record; the clean training set is the poisoned one and behind it
        the clean reserve, to which ``--index`` points.
        """
        both = (
            np.concatenate((given["train_images"], given["reserve_images"])),
            np.concatenate((given["train_labels"], given["reserve_labels"])),
        )
        # nobody is marked as poisoned
        train = prepro_cls_DatasetBD_v2(Rows(given["train_images"], given["train_labels"]))
        if some_marked:
            label = int(given["train_labels"][0])
            train.set_one_bd_sample(0, Image.fromarray(given["train_images"][0]), label, label)
        test = prepro_cls_DatasetBD_v2(Rows(given["triggered_images"], given["triggered_true"]))
        for i, label in enumerate(given["triggered_labels"].tolist()):
            image = Image.fromarray(given["triggered_images"][i])
            test.set_one_bd_sample(i, image, label, int(given["triggered_true"][i]))
        change = {
            which: source.get_transform(dataset, height, width, train=which)
            for which in (True, False)
        }
        clean_test = Rows(given["test_images"], given["test_labels"])
        return {
            "clean_train": dataset_wrapper_with_transform(Rows(*both), change[True]),
            "clean_test": dataset_wrapper_with_transform(clean_test, change[False]),
            "bd_train": dataset_wrapper_with_transform(train, change[True]),
            "bd_test": dataset_wrapper_with_transform(test, change[False]),
        }

    def load_attack_result(path: str, *_: Any, **__: Any) -> Any:
        if not str(path).endswith("attack_result.pt"):
            return torch.load(path, map_location="cpu", weights_only=True)
        return {"model_name": told["model_name"], "model": dict(told["model"]), **sets()}

    return load_attack_result


def overheard() -> dict[str, Any]:
    """What a detector hands to scikit-learn for its numbers, filled in while it runs: "flagged",
    whom it suspects; "scores" by which; and "true", who is poisoned as it believes.

    Nobody is marked here, where scikit-learn would find fault with what is missing.
    """
    from sklearn import metrics

    told: dict[str, Any] = {}

    def confusion_matrix(true: Any, pred: Any, *_: Any, **__: Any) -> np.ndarray:
        told["true"] = np.asarray(true)
        told["flagged"] = np.asarray(pred).astype(bool)
        pairs = 2 * told["true"].astype(int) + told["flagged"]
        return np.bincount(pairs, minlength=4).reshape(2, 2)

    def scored(plain: Any) -> Any:
        def score(true: Any, scores: Any, *args: Any, **more: Any) -> Any:
            told["true"] = np.asarray(true)
            told["scores"] = np.asarray(scores, dtype=float)
            try:
                return plain(true, scores, *args, **more)
            except ValueError:
                return np.nan

        return score

    changed: Any = metrics
    changed.confusion_matrix = confusion_matrix
    changed.roc_curve = scored(metrics.roc_curve)
    changed.roc_auc_score = scored(metrics.roc_auc_score)
    return told


def main() -> None:
    path, home, *flags = sys.argv[1:]
    script = Path(home) / path
    launch.old_names()
    # in place of this file's folder: BackdoorBench's packages have common names
    sys.path[0] = home
    # where Python itself would look first
    sys.path.insert(1, str(script.parent))
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset")
    known, _ = parser.parse_known_args(flags)
    victim = torch.load("victim.pt", map_location="cpu", weights_only=True)
    if victim["ours"]:
        stand_in(script.stem, victim)
    import utils.save_load_attack as save_load

    # it evaluates the marked images by themselves
    save_load.load_attack_result = answer(known.dataset, victim, script.stem == "mcr")
    if path == "defense/nc.py":
        save_the_trained()
    told = overheard() if script.parent.name.startswith("detection") else None
    sys.argv = [str(script), *flags]
    runpy.run_path(str(script), run_name="__main__")
    if told is not None:
        np.savez("suspects.npz", **told)


if __name__ == "__main__":
    main()

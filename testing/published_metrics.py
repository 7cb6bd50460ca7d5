"""Make published_metrics.json: the scores of the masks of metric_masks.py by the published tools.

    python testing/published_metrics.py DAVIS2017_EVALUATION SAM2 > testing/published_metrics.json

The arguments are checkouts of github.com/davisvideochallenge/davis2017-evaluation and github.com/facebookresearch/sam2.
Install what these need: scikit-image, scipy, pandas, tqdm, pillow and opencv.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from testing.metric_masks import SEQUENCES, digest, pairs, sequence


def save(folder: Path, labels: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for frame, picture in enumerate(labels):
        Image.fromarray(picture).save(folder / f'{frame:05}.png')


def of_pairs() -> dict[str, list[float]]:
    from davis2017.metrics import db_eval_boundary, db_eval_iou
    from sav_dataset.utils.sav_benchmark import Evaluator
    result = {}
    for name, (predicted, true) in pairs().items():
        davis = [float(db_eval_iou(true, predicted)), float(db_eval_boundary(true, predicted))]
        evaluator = Evaluator()
        evaluator.feed_frame(predicted.astype(np.uint8), true.astype(np.uint8))
        j, f = evaluator.conclude()
        if j:  # SA-V skips objects that are not in the truth
            np.testing.assert_allclose([j[1] / 100, f[1] / 100], davis, atol=1e-9)
        result[name] = davis
    return result


def of_sequences(folder: Path) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return J and F of each object by tool and sequence, over the frames that the tool counts."""
    from davis2017.evaluation import DAVISEvaluation
    from sav_dataset.utils.sav_benchmark import VideoEvaluator
    names = [f'sequence{seed}' for seed in SEQUENCES]
    for seed, name in zip(SEQUENCES, names, strict=True):
        predicted, true = sequence(seed)
        save(folder / 'davis/Annotations/480p' / name, true)
        save(folder / 'davis/JPEGImages/480p' / name, true)
        for path in (folder / 'davis/JPEGImages/480p' / name).iterdir():
            Image.open(path).save(path.with_suffix('.jpg'))
            path.unlink()
        save(folder / 'found' / name, predicted)
        for number in range(1, true.max() + 1):
            save(folder / 'sav_truth' / name / f'{number:03}', (true == number).astype(np.uint8))
            save(folder / 'sav_found' / name / f'{number:03}', (predicted == number).astype(np.uint8))
    (folder / 'davis/ImageSets/2017').mkdir(parents=True)
    (folder / 'davis/ImageSets/2017/val.txt').write_text('\n'.join(names))

    result = {'DAVIS': {name: {} for name in names}, 'SA-V': {}, 'SA-V, all frames': {}}
    figures = DAVISEvaluation(str(folder / 'davis'), 'semi-supervised', 'val').evaluate(str(folder / 'found'))
    for key, j in figures['J']['M_per_object'].items():
        name, number = key.rsplit('_', 1)
        result['DAVIS'][name][number] = [float(j), float(figures['F']['M_per_object'][key])]
    for tool, skip in (('SA-V', True), ('SA-V, all frames', False)):
        evaluate = VideoEvaluator(str(folder / 'sav_truth'), str(folder / 'sav_found'), skip)
        for name in names:
            _, j, f = evaluate(name)
            result[tool][name] = {str(int(number)): [j[number] / 100, f[number] / 100] for number in j}
    return result


if __name__ == '__main__':
    sys.path += sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        scores = {'masks': digest(), 'pairs': of_pairs(), 'sequences': of_sequences(Path(folder))}
    print(json.dumps(scores, indent=1))

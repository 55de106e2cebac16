"""What is read from logits when classes are places."""

from __future__ import annotations

import torch

from combicam.engine.evaluation.quantities import place_quantities, probability
from combicam.export.classes.classes import ClassTable

# One degree along the equator is 111.195 km on the sphere.
CLASSES = ClassTable(latitudes=(0.0, 0.0, 0.0, 0.0), longitudes=(179.95, -179.95, -178.95, 0.0))


def test_neighbours_across_the_date_line_count_together() -> None:
    targets = torch.tensor([0, 3])
    quantities = place_quantities(targets, CLASSES, 25.0)
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.2, 0.2, 0.2, 0.4]]))
    owners = torch.tensor([0, 1])
    torch.testing.assert_close(quantities["density"](logits, owners), torch.tensor([0.6, 0.4]))
    shift = quantities["shift_km"](logits, owners)
    torch.testing.assert_close(shift, torch.tensor([11.1195, 0.0]), atol=1e-3, rtol=0)
    # Rows may belong to any image, and come in any number.
    torch.testing.assert_close(
        quantities["density"](logits[[1, 0, 1]], torch.tensor([0, 0, 1])),
        torch.tensor([0.4, 0.6, 0.4]),
    )


def test_probability_is_of_the_images_class() -> None:
    logits = torch.randn(3, 4)
    found = probability(torch.tensor([2, 1]))(logits, torch.tensor([0, 1, 0]))
    torch.testing.assert_close(found, logits.softmax(1)[[0, 1, 2], [2, 1, 2]])


def test_labels_and_one_logit_have_sigmoids() -> None:
    logits = torch.randn(3, 4)
    owners = torch.tensor([0, 1, 0])
    found = probability(torch.tensor([2, 1]), of_labels=True)(logits, owners)
    torch.testing.assert_close(found, logits.sigmoid()[[0, 1, 2], [2, 1, 2]])
    alone = probability(torch.tensor([0, 0]))(logits[:, :1], owners)
    torch.testing.assert_close(alone, logits[:, 0].sigmoid())

"""Two nets trained apart cascade as well when the scores of one are squared, and only alignment makes it so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_repo.alignment import Alignment
from model_repo.publish import read
from model_repo.runtime.select import make_engine
from search import calibrate, routing
from search.bench_scales import ScaleResult, ScaleRow, scales
from search.data.coco import Dataset, read_dataset
from search.measure import loaded
from search.routing_claims import Interval
from search.run_folder import Silent
from search.space import Architecture
from search.two_nets import TwoNets, published_twice, square_scores
from tests.search.tiny import tiny_dataset

NETS = TwoNets(
    steps=150,
    batch_size=8,
    small=Architecture.parse("r64-d1.1.1.1-w8.8.16.16-n8-h1"),
    large=Architecture.parse("r160-d1.2.2.1-w16.32.48.48-n24-h1"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    counts = {"train": 64, "calib": 120, "test": 120}
    return read_dataset(tiny_dataset(tmp_path_factory.mktemp("data") / "data", counts), needed=("train",))

import importlib.util
import time
from types import SimpleNamespace

import pytest

from gfm_hf.training import energy
from gfm_hf.training.energy import PAPER_METHOD, EnergyMeter


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told; `clock.seconds` is the time."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.seconds)
    return clock


def test_paper_formula_reproduces_table_1(clock):
    """GFM: 93.3 V100 hours are 13.3 kg; GeoPile for 800 epochs: 533.2 hours are 76.0 kg."""
    meter = EnergyMeter()
    for hours, kg in ((93.3, 13.3), (533.2, 76.0)):
        clock.seconds = 1000.0 + hours * 3600
        report = meter.report()
        assert report["device_hours"] == pytest.approx(hours)
        assert report["energy_kwh"] == pytest.approx(hours * 0.25)
        assert report["co2_kg"] == pytest.approx(hours * 0.25 * 0.57) and round(report["co2_kg"], 1) == kg
        assert report["energy_method"] == PAPER_METHOD


def test_hours_count_for_every_device_and_go_on_after_an_interruption(clock):
    first = EnergyMeter(devices=4)
    clock.seconds += 3600
    before = first.report()
    assert before["device_hours"] == pytest.approx(4)
    second = EnergyMeter(devices=4, earlier=before)
    assert second.report() == before
    clock.seconds += 1800
    after = second.report()
    assert after["device_hours"] == pytest.approx(6) and after["energy_kwh"] == pytest.approx(1.5)
    assert after["co2_kg"] == pytest.approx(0.855) and after["energy_method"] == PAPER_METHOD


def test_a_change_of_method_is_said():
    earlier = {"device_hours": 1.0, "energy_kwh": 2.0, "co2_kg": 3.0, "energy_method": "codecarbon"}
    report = EnergyMeter(earlier=earlier).report()
    assert report["energy_method"] == f"codecarbon, then {PAPER_METHOD}"
    assert report["co2_kg"] == pytest.approx(3.0, abs=1e-3)


def test_codecarbon_measures_where_it_is_asked_for(monkeypatch):
    emissions = SimpleNamespace(energy_consumed=1.5, emissions=0.6)
    tracker = SimpleNamespace(flush=lambda: None, _prepare_emissions_data=lambda: emissions)
    monkeypatch.setattr(energy, "_start_codecarbon", lambda country: tracker if country == "USA" else None)
    report = EnergyMeter(country="USA").report()
    assert (report["energy_kwh"], report["co2_kg"], report["energy_method"]) == (1.5, 0.6, "codecarbon")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_real_codecarbon_reports_twice():
    pytest.importorskip("codecarbon")
    meter = EnergyMeter(country="USA")
    first = meter.report()
    time.sleep(0.2)
    second = meter.report()
    assert first["energy_method"] == "codecarbon" and second["energy_kwh"] > first["energy_kwh"] >= 0
    assert second["co2_kg"] > 0


def test_country_without_codecarbon_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gfm-hf\[energy\]"):
        EnergyMeter(country="USA")

"""Energy and CO2 of a run: measured by codecarbon where it is installed, else by the paper's formula."""

import importlib.util
import time
from typing import Any


# GFM Table 1: every CO2 figure of the paper is GPU hours x 250 W x 0.57 kg/kWh.
PAPER_DEVICE_KW = 0.25
PAPER_KG_PER_KWH = 0.57
PAPER_METHOD = "paper formula: device hours x 0.25 kW x 0.57 kg/kWh"


class EnergyMeter:
    """Adds up the energy of a run, over interruptions.

    Args:
        devices: Accelerators (or CPU processes) at work.
        country: ISO code of the grid for codecarbon; without one, or without codecarbon, the paper's formula is used.
        earlier: What `report()` gave before an interruption.
    """

    def __init__(self, devices: int = 1, country: str | None = None, earlier: dict[str, Any] | None = None) -> None:
        self._devices = devices
        self._earlier = earlier or {}
        self._started = time.monotonic()
        self._tracker = _start_codecarbon(country) if country else None

    def report(self) -> dict[str, Any]:
        """Totals so far.

        Returns:
            `device_hours`, `energy_kwh`, `co2_kg` and `energy_method`, which says where the numbers come from.
        """
        hours = (time.monotonic() - self._started) / 3600 * self._devices
        if self._tracker is None:
            kwh, kg, method = hours * PAPER_DEVICE_KW, hours * PAPER_DEVICE_KW * PAPER_KG_PER_KWH, PAPER_METHOD
        else:
            self._tracker.flush()
            emissions = self._tracker._prepare_emissions_data()
            kwh, kg, method = emissions.energy_consumed, emissions.emissions, "codecarbon"
        before = self._earlier.get("energy_method", method)
        return {
            "device_hours": self._earlier.get("device_hours", 0.0) + hours,
            "energy_kwh": self._earlier.get("energy_kwh", 0.0) + kwh,
            "co2_kg": self._earlier.get("co2_kg", 0.0) + kg,
            "energy_method": method if before == method else f"{before}, then {method}",
        }


def _start_codecarbon(country: str) -> Any:
    if importlib.util.find_spec("codecarbon") is None:
        raise ValueError(
            "--country_iso_code needs codecarbon; run `pip install gfm-hf[energy]` or leave the flag out."
        )
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.input import DataSource

    if country not in DataSource().get_global_energy_mix_data():
        raise ValueError(f"--country_iso_code {country} is unknown to codecarbon; use three letters, such as USA.")
    tracker = OfflineEmissionsTracker(country_iso_code=country, save_to_file=False, log_level="error")
    tracker.start()
    return tracker

"""Whether an explanation is faithful: rank, edit, curve, area, beside controls and with intervals."""

"""Pictures of explanations: heat maps, overlays, panels, plots."""

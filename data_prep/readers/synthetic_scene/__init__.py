"""What the synthetic reader renders: road and driver, camera, ground, sky, roadside, traffic, light."""

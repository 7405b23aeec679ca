"""What the engine's process does once before it serves: everything is measured, built and warmed up here."""

"""See: why a network trains. The probe, the experiments, the report and the lab."""

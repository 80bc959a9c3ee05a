"""The test suite: unit, property, model, conformance, fault, end-to-end and house tests."""

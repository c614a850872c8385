"""When a run's checkpoints are saved and which are kept, and what loading one does to the run.

The files themselves are the business of `bevfusion_enhanced.checkpoints`.
"""

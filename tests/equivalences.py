"""Every identity that the project claims, on one screen: what equals what, how closely, and the test that shows it.

`tests/test_equivalences.py` makes sure that each test exists and that docs/exactness.md names its file. The reasons were
checked with 1 and 2 threads and with `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` lowered. Tests that compare tensors with
`torch.equal` beside these compare copies, draws, or the same calls on the same shapes.
"""

BITWISE = "bitwise"

# what | equals what | how closely | why no closer, or why bit for bit on any processor | shown by
EQUIVALENCES = [
    ("six rules", "their teachers by hand, θ=4, φ=0", BITWISE, "binary fractions: exact in any order", "method/test_rules.py::test_teacher_is_where_the_equation_says_and_the_student_has_not_moved"),
    ("six rules", "a plain loop over deep copies", 1e-12, "float64 sums in another order", "invariants/test_equations.py::test_rule_equals_its_equation"),
    ("six rules, BatchNorm and dropout", "the plain loop", 1e-12, "float64 sums in another order", "invariants/test_equations.py::test_rule_equals_its_equation_with_batch_norm_and_dropout"),
    ("nested optimizer state, carry, warm-up", "the plain loop", 1e-12, "float64 sums in another order", "invariants/test_equations.py::test_options_equal_their_equation"),
    ("FST-D, K = 0 and 1; FST-W, N = 1", "mean teacher; Improved-FST", BITWISE, "the same calls on the same shapes", "invariants/test_identities.py::test_equal_bit_for_bit"),
    ("the student after a look-ahead", "the student before it", BITWISE, "copied, not computed", "method/test_lookahead.py::test_student_optimizer_and_randomness_are_bitwise_what_they_were"),
    ("preset official", "recordings of the authors' code", 1e-12, "float64 of another machine", "invariants/test_official.py::test_the_recordings_of_the_authors_code_are_reproduced"),
    ("preset official", "the authors' loops as plain code", 1e-12, "float64 sums in another order", "invariants/test_official.py::test_domain_adaptation_is_the_authors_loop"),
    ("accumulation 4×1 and 2×2", "1×4", 1e-12, "float64 sums in another order", "invariants/test_accumulation.py::test_the_split_of_a_group_does_not_matter"),
    ("two processes × 2", "one × 4", 1e-12, "float64 sums in another order", "distributed/test_processes.py::test_two_processes_of_two_images_are_one_of_four"),
    ("FSDP2", "DDP", 1e-12, "float64 sums in another order", "distributed/test_scale.py::test_fsdp2_is_ddp"),
    ("two nodes of one process", "one node of two", BITWISE, "the same processes and shapes", "distributed/test_scale.py::test_two_nodes_of_one_process_are_one_node_of_two"),
    ("N steps, resume, N steps", "2N steps", BITWISE, "the same calls on the same shapes", "invariants/test_resume.py::test_resumed_run_is_the_uninterrupted_run"),
    ("killed at any write, resumed", "never killed", BITWISE, "the same calls on the same shapes", "faults/test_killed.py::test_killed_at_every_write_of_a_checkpoint_a_run_goes_on_as_if_nothing_happened"),
    ("FSTTrainer, supervised", "transformers.Trainer", 1e-9, "float64 sums in another order, steps of Adam", "behavior/test_numbers.py::test_weights_schedule_and_losses_are_the_same"),
    ("overflow under a GradScaler", "a plain loop", 1e-12, "float64 sums in another order", "invariants/test_precision.py::test_an_overflow_costs_its_step_and_no_more_and_the_scale_is_that_of_the_iterations"),
    ("weights, saved and loaded", "those in memory; logits to float32 rounding", BITWISE, "copied; a mapped file lies elsewhere, so kernels differ", "models/test_networks.py::test_saved_network_loads_whole_and_gives_the_same_logits"),
    ("adapters, loaded with peft", "those in memory", "float32 rounding", "merging adds a product in float32", "training/test_adapters.py::test_what_is_saved_loads_with_peft_alone_and_merges"),
    ("torch.compile", "eager", 1e-12, "a backend may fuse kernels", "behavior/test_compile.py::"),
]  # fmt: skip

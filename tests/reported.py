"""What people reported of such tools, and the tests that answer each.

A pain is what many threads have in common, a case is one node with its files. A test of either
reproduces the situation, and shows that it cannot happen here, or that `doctor` names the cause and
the remedy in its first three lines. `tools/test_reported.py` keeps the table true.

    tests/run $(.venv/bin/python -m tests.reported P8 case-24)    # the modules of some of them
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """What was reported, one of the threads, and tests: `MODULE::FUNCTION`, with `[ID]` where one
    of several parameters is meant. Modules are below `tests/`."""

    what: str
    source: str
    tests: tuple[str, ...]


_DOCTOR = "cli/test_doctor.py::test_first_three_lines_name_the_cause"
_PLANTED = "cli/test_doctor_planted.py::test_first_three_lines_name_what_was_planted"
_CRIO = f"{_PLANTED}_on_crio"
_MATRIX = "conformance/test_matrix.py::test_node_is_made_right_and_put_back_or_refused"
_DORMANT = "conformance/test_dormant.py::test_restart_onto_files_that_do_not_load_is_refused"

PAINS: Mapping[str, Reported] = {
    "P1": Reported(
        "a drop-in of a version that containerd does not read kills it", "NVIDIA/aicr#1688",
        (f"{_DOCTOR}[drop-in of a higher version]", f"{_DOCTOR}[higher than root on 1.7]",
         f"{_MATRIX}[frozen-v3-below-v2]"),
    ),
    "P2": Reported(
        "the default runtime names nothing", "METR/hawk#273",
        (f"{_DOCTOR}[default of nothing]", f"{_MATRIX}[sole-nvidia-v2]", f"{_MATRIX}[eks-v3]",
         "cli/test_doctor_nodes.py::test_crio_default_of_nothing"),
    ),
    "P3": Reported(
        "no runtime for nvidia is configured", "NVIDIA/gpu-operator#349",
        ("cli/test_pains.py::test_p3_missing_handler_is_named_with_its_file",
         f"{_DOCTOR}[not imported]", f"{_PLANTED}[section of another version]",
         "cli/test_restart.py::test_handler_missing_after_a_trial_start_is_refused"),
    ),
    "P4": Reported(
        "another tool writes its configuration again", "NVIDIA/gpu-operator#598",
        ("cli/test_pains.py::test_p4_rewritten_configuration_is_repaired_with_one_restart",
         f"{_PLANTED}[rewritten]", f"{_PLANTED}[rewritten in place]",
         "conformance/test_run.py::test_run_repairs_ten_disturbances_within_5_seconds"),
    ),
    "P5": Reported(
        "restarts that nobody needs", "NVIDIA/gpu-operator#594",
        ("cli/test_pains.py::test_p5_nothing_restarts_a_right_runtime",
         "cli/test_run.py::test_nothing_is_touched_while_nothing_happens",
         "cli/test_quiet.py::test_restart_waits_for_a_pod_that_is_being_made"),
    ),
    "P6": Reported(
        "the end of the pod undoes the node", "NVIDIA/nvidia-container-toolkit#1040",
        ("cli/test_pains.py::test_p6_stopping_is_not_undoing",
         "cli/test_run.py::test_stop_during_a_change_finishes_it_first",
         f"{_MATRIX}[crun-default-v2]"),
    ),
    "P7": Reported(
        "k3s, RKE2, k0s and MicroK8s write their files anew", "NVIDIA/gpu-operator#992",
        (f"{_DOCTOR}[k3s]", "conformance/test_rendered.py::test_drop_in_outlives_starts_of_rke2",
         "conformance/test_rendered.py::test_no_runtime_config_leaves_a_rendered_file_alone",
         "operator/test_containerd.py::test_configuration_that_k3s_renders_is_not_edited"),
    ),
    "P8": Reported(
        "two containerds on one node", "NVIDIA/nvidia-container-toolkit#982",
        ("conformance/test_pains.py::test_p8_executable_behind_the_socket_counts",
         "conformance/test_defaults.py::test_configuration_of_the_process_is_the_one_edited"),
    ),
    "P9": Reported(
        "options of two tools in one handler", "NVIDIA/gpu-operator#1374",
        (f"{_DOCTOR}[two spellings]", f"{_DOCTOR}[empty type]", f"{_MATRIX}[stale-lower-v2]",
         f"{_MATRIX}[kubespray-v2]",
         "cli/test_doctor_nodes.py::test_cgroup_driver_of_the_kubelet"),
    ),
    "P10": Reported(
        "imports and other settings are lost", "NVIDIA/nvidia-container-toolkit#1382",
        (f"{_MATRIX}[imports-v2]", f"{_MATRIX}[nested-imports-v2]", f"{_MATRIX}[gke-v2]",
         f"{_DOCTOR}[missing import]", f"{_PLANTED}[hidden by a mirror]"),
    ),
    "P11": Reported(
        "drop-ins of CRI-O in wrong places, and stray files in the right one",
        "NVIDIA/nvidia-container-toolkit#1829",
        ("cli/test_doctor_nodes.py::test_crio_drop_in_in_a_directory_that_is_not_read",
         f"{_CRIO}[backup]",
         "cli/test_crio.py::test_a_replaced_drop_in_is_whole"),
    ),
    "P12": Reported(
        "strategy, prefix, default and CDI do not fit", "NVIDIA/gpu-operator#1876",
        ("unit/doctor/test_strategies.py::test_pod_without_its_device_is_a_fault",
         f"{_DOCTOR}[wrong prefix]", f"{_DOCTOR}[default taken back]"),
    ),
    "P13": Reported(
        "specs that are stale or gone", "NVIDIA/nvidia-container-toolkit#1828",
        (f"{_DOCTOR}[stale spec]", "cli/test_fresh_specs.py::test_specs_are_kept_fresh",
         f"{_PLANTED}[spec with nothing in it]",
         "cli/test_gpu_specs.py::test_error_of_nvml_takes_nothing_away"),
    ),
    "P14": Reported(
        "any image gets every GPU by a variable", "NVIDIA/gpu-operator#1588",
        ("image/test_toolkit.py::test_only_privileged_containers_get_devices_by_variable",
         "unit/doctor/test_checks.py::test_check_finds_it[isolation]"),
    ),
    "P15": Reported(
        "a reload of systemd, SELinux, read-only hosts", "NVIDIA/gpu-operator#485",
        ("cli/test_pains.py::test_p15_systemd_is_never_reloaded",
         "cli/test_refusals.py::test_refusal_touches_nothing[read-only configuration]",
         "unit/doctor/test_checks.py::test_check_finds_it[selinux]"),
    ),
}  # fmt: skip

CASES: Mapping[str, Reported] = {
    "case-01": Reported(
        "mirrors beside config_path wait for a restart", "containerd/containerd#5306",
        (f"{_DORMANT}[mirrors]",
         "conformance/test_doctor.py::test_file_that_waits_for_a_restart_to_end_the_runtime"),
    ),
    "case-02": Reported(
        "values that only the CRI plugin turns down", "containerd/containerd#4574",
        (f"{_DORMANT}[timeout]", f"{_DORMANT}[systemd_cgroup]", f"{_DORMANT}[engine]",
         f"{_DORMANT}[all devices]",
         "conformance/test_doctor.py::test_value_that_a_start_turns_down_is_named"),
    ),
    "case-04": Reported(
        "a file on a data volume, a sole handler of NVIDIA's, a base specification that is gone",
        "the lifecycle script of SageMaker HyperPod",
        (f"{_MATRIX}[data-volume-v2]", f"{_PLANTED}[base specification]",
         "conformance/test_defaults.py::test_configuration_of_the_process_is_the_one_edited",
         "conformance/test_dormant.py::test_missing_base_specification_is_refused"),
    ),
    "case-06": Reported(
        "encodings that containerd 1.x reads", "containerd/containerd#7016",
        (f"{_MATRIX}[bom-v2]", f"{_MATRIX}[odd-comments-v2]", f"{_MATRIX}[cr-v2]",
         f"{_MATRIX}[latin1-v2]",
         "cli/test_texts.py::test_crio_file_on_which_it_would_not_start_is_refused"),
    ),
    "case-07": Reported(
        "inline tables of TOML 1.1", "pelletier/go-toml#1031",
        (f"{_MATRIX}[multiline-v2]", f"{_MATRIX}[multiline-v3]",
         "cli/test_texts.py::test_odd_drop_ins_that_crio_reads_are_left_alone",
         "conformance/test_toml.py::test_containerd_reads_odd_toml_as_the_table_says"),
    ),
    "case-09": Reported(
        "version at the end of the file", "containerd/containerd#3843",
        (f"{_DOCTOR}[version at the end]", "cli/test_texts.py::test_version_at_the_end_is_named",
         f"{_MATRIX}[version-at-the-end]"),
    ),
    "case-10": Reported(
        "a drop-in with an empty table of runc", "the documentation of deckhouse",
        (f"{_DOCTOR}[empty runc table]", f"{_MATRIX}[empty-runc-v2]",
         "image/test_default_runtime.py::test_pods_of_every_handler_run[v2-empty-runc]"),
    ),
    "case-12": Reported(
        "NVIDIA's runtime by the v1.linux shim", "NVIDIA/k8s-device-plugin#182",
        (f"{_MATRIX}[linux-shim-v1]", f"{_MATRIX}[linux-shim-default-v1]",
         "image/test_default_runtime.py::test_pods_of_every_handler_run[v1-linux-shim]"),
    ),
    "case-14": Reported(
        "a handler called nvidia that is a gVisor sandbox", "google/gvisor#10997",
        ("conformance/test_defaults.py::test_sandbox_under_our_name_stays",
         f"{_MATRIX}[gvisor-nvidia-v2]",
         "unit/doctor/test_checks.py::test_check_finds_it[handler-sandbox]"),
    ),
    "case-15": Reported(
        "k0s merges a file into its own", "k0sproject/k0s#6547",
        ("conformance/test_rendered.py::test_no_runtime_config_leaves_a_rendered_file_alone",
         f"{_MATRIX}[k0s-v2]",
         "unit/doctor/test_checks.py::test_check_finds_it[config-rendered]"),
    ),
    "case-20": Reported(
        "Flatcar's file in a read-only /usr", "NVIDIA/gpu-operator#673",
        ("cli/test_refusals.py::test_configuration_in_a_read_only_usr_is_refused",
         "unit/doctor/test_checks.py::test_check_finds_it[host-readonly]"),
    ),
    "case-24": Reported(
        "a drop-in of nvidia-ctk without conmon", "NVIDIA/nvidia-container-toolkit#681",
        (f"{_CRIO}[no conmon]",
         "cli/test_cases.py::test_case_24_drop_in_without_conmon_is_made_whole",
         f"{_DOCTOR}[no low-level runtime]"),
    ),
    "case-26": Reported(
        "an OCI hook that is left of a package", "NVIDIA/k8s-device-plugin#418",
        ("cli/test_crio_started.py::test_foreign_hook_is_named_and_never_doubled",
         "cli/test_doctor_nodes.py::test_crio_foreign_hook"),
    ),
    "case-27": Reported(
        "a spec of an older driver", "containers/podman#23935",
        ("cli/test_dead_specs.py::test_spec_of_an_older_driver_provides_nothing",
         f"{_DOCTOR}[stale spec]"),
    ),
    "case-28": Reported(
        "a spec that this runtime cannot read", "NVIDIA/nvidia-container-toolkit#1860",
        ("cli/test_dead_specs.py::test_spec_that_this_runtime_does_not_read_provides_nothing",
         f"{_DOCTOR}[broken spec]"),
    ),
    "case-29": Reported(
        "WSL2", "NVIDIA/nvidia-container-toolkit#1739",
        ("cli/test_platform.py::test_other_platforms_are_named_without_useless_advice",
         "cli/test_platform.py::test_apply_makes_its_spec[wsl]",
         "unit/doctor/test_checks.py::test_check_finds_it[driver-]"),
    ),
    "case-31": Reported(
        "a driver root whose dev lacks nodes", "kubernetes-sigs/dra-driver-nvidia-gpu#787",
        ("unit/cdi/make/test_dev_roots.py::test_mig_device_has_its_capabilities",
         "cli/test_fresh_specs.py::test_node_that_comes_late_is_in_the_spec"),
    ),
    "case-34": Reported(
        "units that go down with containerd", "docker/for-linux#678",
        ("node/test_systemd.py::test_dependent_units_are_back_after_a_restart",
         "node/test_systemd.py::test_unit_that_does_not_come_back_is_reported",
         "unit/doctor/test_checks.py::test_check_finds_it[units]"),
    ),
}  # fmt: skip

REPORTED = {**PAINS, **CASES}

if __name__ == "__main__":
    print(*sorted({
        f"tests/{test.partition('::')[0]}" for name in sys.argv[1:] for test in REPORTED[name].tests
    }))  # fmt: skip

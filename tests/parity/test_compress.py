"""Every compression recipe against recorded outputs of the published functions.

Cases and settings come from the files. Decisions must be equal, values within 2e-4 (1e-3 where
many terms are summed), float32 on the CPU.
"""

import compress_merging as merging
import compress_selecting as selecting
import pytest
from compress_cases import FOLDER, Case, recorded

CASES = recorded()


@pytest.mark.parametrize("case", CASES or [None], ids=str)
def test_recipe_equals_the_recorded_case(case: Case | None) -> None:
    if case is None:
        pytest.skip(f"no recorded data at {FOLDER / 'compression'}; set OMNITOK_GOLDEN")
    check = CHECKS.get(case.path.stem) or next(
        check for start, check in MIXED.items() if case.name.startswith(start)
    )
    check(case.meta, case.tensors("in"), case.tensors("out"), case.name)


CHECKS = {
    "tome": merging.check_tome,
    "testa": merging.check_testa,
    "vid_tldr": merging.check_vid_tldr,
    "sta": merging.check_sta,
    "mctf": merging.check_mctf,
    "framefusion": merging.check_framefusion,
    "dycoke_ttm": merging.check_dycoke,
    "visionzip": selecting.check_visionzip,
    "chat_univi": merging.check_chat_univi,
    "prumerge": selecting.check_prumerge,
    "dart": selecting.check_dart,
    "evit": selecting.check_evit,
    "ats": selecting.check_ats,
    "vbpe": merging.check_vbpe,
}
MIXED = {  # files of several methods, by how their cases begin
    "m3": selecting.check_m3,
    "dynamic_vlm": selecting.check_dynamic_vlm,
    "ppllava": selecting.check_ppllava,
    "quota": selecting.check_quota,
    "ts_llava": selecting.check_ts_llava,
    "aim": merging.check_aim,
    "sparsevlm": selecting.check_sparsevlm,
    "globalcom2": selecting.check_globalcom2,
    "hired": selecting.check_hired,
    "llama_vid": selecting.check_llama_vid,
    "bvllm": merging.check_bvllm,
    "evs": selecting.check_evs,
}

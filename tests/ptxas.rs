//! What fails the build in the assembler's report, and that the compiler's own report of a spill is seen.

#[path = "../build/nvcc.rs"]
mod nvcc;
#[path = "../build/ptxas.rs"]
mod ptxas;

use std::fs;
use std::path::Path;

use libtest_mimic::{Arguments, Failed, Trial};

/// What `ptxas -v` says of a kernel that is as it should be, between the lines of another.
const CLEAN: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'clean' for 'sm_90a'
ptxas info    : Function properties for clean
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers
";

/// A report on the kernel `bad` with one line of its own, after one on another kernel.
fn report(line: &str) -> String {
    format!("{CLEAN}ptxas info    : Compiling entry function 'bad' for 'sm_90a'\n{line}\n")
}

fn a_clean_report_has_no_problems() -> Result<(), Failed> {
    assert_eq!(ptxas::problems(CLEAN), [""; 0]);
    assert_eq!(ptxas::problems(&format!("{CLEAN}{CLEAN}")), [""; 0]);
    Ok(())
}

fn spills_and_stack_frames_are_problems_of_their_kernel() -> Result<(), Failed> {
    let line = "    128 bytes stack frame, 16 bytes spill stores, 32 bytes spill loads";
    let expected = ["bad: 128 bytes stack frame", "bad: 16 bytes spill stores", "bad: 32 bytes spill loads"];
    assert_eq!(ptxas::problems(&report(line)), expected);
    let line = "    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    assert_eq!(ptxas::problems(&report(line)), ["bad: 64 bytes stack frame"]);
    Ok(())
}

fn serialised_wgmma_is_a_problem_of_its_kernel() -> Result<(), Failed> {
    let line = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to \
                non wgmma instructions defining accumulator registers of a wgmma between start and end of the \
                pipeline stage in the function 'bad'";
    let problems = ptxas::problems(&report(line));
    assert!(
        matches!(&problems[..], [one] if one.starts_with("bad: ") && one.contains("C7510")),
        "{problems:?}"
    );
    Ok(())
}

/// 64 values that are live at once, in a kernel that may hold 32.
const SPILLING: &str = r#"
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(const float *in, float *out) {
    float x[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) x[i] = in[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = x[i] * x[63 - i] + x[(i * 7) % 64];
}
"#;

fn what_the_compiler_says_of_a_spill_is_seen(nvcc: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let source = folder.path().join("spilling.cu");
    fs::write(&source, SPILLING)?;
    let report = nvcc::compile(nvcc, &source, &folder.path().join("spilling.fatbin"), true)?;
    let problems = ptxas::problems(&report);
    let spill =
        |problem: &String| problem.starts_with("spilling: ") && problem.ends_with(" bytes spill stores");
    assert!(problems.iter().any(spill), "{report}");
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    let nvcc = nvcc::find(Path::new(env!("CARGO_MANIFEST_DIR")));
    let missing = nvcc.is_err();
    let compiled = move || what_the_compiler_says_of_a_spill_is_seen(&nvcc?);
    let trials = vec![
        Trial::test("a_clean_report_has_no_problems", a_clean_report_has_no_problems),
        Trial::test(
            "spills_and_stack_frames_are_problems_of_their_kernel",
            spills_and_stack_frames_are_problems_of_their_kernel,
        ),
        Trial::test(
            "serialised_wgmma_is_a_problem_of_its_kernel",
            serialised_wgmma_is_a_problem_of_its_kernel,
        ),
        Trial::test("what_the_compiler_says_of_a_spill_is_seen", compiled).with_ignored_flag(missing),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

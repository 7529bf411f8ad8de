//! What the assembler's report must not contain.

/// The findings in a report of `ptxas -v` that fail the build: spills, local memory, and wgmma that was serialised.
pub fn problems(report: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut entry = "before the first entry";
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            entry = rest.split('\'').next().unwrap_or(rest);
        }
        // "N bytes stack frame, N bytes spill stores, N bytes spill loads"
        for part in line.split(',') {
            let words: Vec<&str> = part.split_whitespace().collect();
            if let [.., bytes, "bytes", "stack", "frame"] | [.., bytes, "bytes", "spill", "stores" | "loads"] =
                words[..]
                && bytes != "0"
            {
                problems.push(format!("{entry}: {}", part.trim()));
            }
        }
        // C7510 and its kin: "Potential Performance Loss: wgmma.mma_async instructions are serialized ..."
        if line.contains("wgmma") && line.contains("serialized") {
            problems.push(format!("{entry}: {}", line.trim()));
        }
    }
    problems
}

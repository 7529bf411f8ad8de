//! What a search came to, for a person to read in a minute.

use std::fmt::Write as _;

use longrope::search::{Candidate, Evaluation, Optimiser, Search};
use longrope_drivers::model::Origin;
use longrope_drivers::report::Table;
use longrope_drivers::search_run::{Run, Samples, Task};
use longrope_drivers::target::Purpose;

use super::arguments::{Arguments, Objective};

/// Where candidates were left early.
pub fn left_early(task: &Task<'_>) -> &'static str {
    match task.short_cuts.screen {
        Some(_) => "after the beginning of their first window, or after all of it",
        None => "after their first window",
    }
}

/// What the optimiser is, and how it chooses beyond what is told of it.
fn optimiser(arguments: &Arguments, search: &Search) -> String {
    let mut text = format!("{}, seed {}", arguments.optimiser.name(), arguments.seed);
    if let Optimiser::CmaEs(settings) = search.optimiser() {
        if let Some(samples) = settings.surrogate {
            write!(text, ", the best of {samples} samples by a surrogate").unwrap_or_default();
        }
        if let Some(generations) = settings.restarts {
            let plural = if generations == 1 { "" } else { "s" };
            write!(text, ", begun again after {generations} generation{plural} without a better candidate")
                .unwrap_or_default();
        }
    }
    text
}

/// The report of a search. `texts`: what it was searched on, and what the table was measured on.
pub fn text(
    arguments: &Arguments,
    origin: &Origin,
    (task, run): (&Task<'_>, &Run),
    (search_name, eval_name): (&str, &str),
    best: &Evaluation,
    table: Option<&Table>,
) -> String {
    let (length, count) = (task.target.length(), task.samples.count());
    let purpose = match task.target.purpose() {
        Purpose::Extend => String::new(),
        Purpose::Further(earlier) => format!(", to multiply those for {} tokens", earlier.max_length()),
        Purpose::Recover(schedule) => {
            format!(", to recover what those for {} tokens lose there", schedule.max_length())
        }
    };
    let samples = match &task.samples {
        Samples::Text { last, .. } => {
            let counted =
                last.map_or(String::new(), |last| format!(", of which the last {last} tokens count"));
            format!("{count} windows of {search_name}{counted}")
        }
        Samples::Passkeys(_) => format!("{count} prompts with a passkey"),
    };
    let value = match arguments.objective {
        Objective::Perplexity => "perplexity",
        Objective::Passkey => "passkey value",
    };
    let history = run.search.history();
    let at = history.iter().position(|evaluation| std::ptr::eq(evaluation, best)).map_or(0, |at| at + 1);
    let first = history.iter().filter(|evaluation| evaluation.iteration == 0);
    let first = first.map(|evaluation| evaluation.value).fold(f64::INFINITY, f64::min);
    let seconds: f64 = run.costs.iter().map(|cost| cost.seconds).sum();
    let dropped = run.costs.iter().filter(|cost| cost.windows < count).count();
    let Candidate { first_tokens, attention_factor, .. } = &best.candidate;
    let found = match attention_factor {
        Some(factor) => format!("{factor}, searched"),
        None => format!("{:.4}, fixed", task.attention_factor),
    };
    let early = left_early(task);
    let mut text = format!(
        "Factors for {length} tokens{purpose}.\n\nmodel              {origin}, {}\nsearched on        {samples}\n\
         optimiser          {}\nevaluations        {}, {dropped} of them left {early}\n\
         cost               {} model tokens, {seconds:.1} s\nbest {value:<14}{:.4}, by evaluation {at}; the best that it began \
         with {first:.4}\nattention factor   {found}\nn_hat              {first_tokens} first tokens\nfactors            ",
        task.model.place(),
        optimiser(arguments, &run.search),
        history.len(),
        run.tokens(length),
        best.value,
    );
    for (i, factor) in task.target.factors(&best.candidate).iter().enumerate() {
        if i > 0 && i % 8 == 0 {
            text += "\n                   ";
        }
        write!(text, "{factor:>8.3}").unwrap_or_default();
    }
    text.push('\n');
    if let Some(table) = table {
        let windows = arguments.eval_windows;
        write!(
            text,
            "\nPerplexity on {eval_name}, which the search has not seen ({windows} windows a length; * marks the lowest):\n{}",
            table.to_text()
        )
        .unwrap_or_default();
    }
    text
}

//! Bad numbers among those that lie on the device, and what is said of them.

use longrope::ops::{BAD_CHOICE, BAD_LENGTH, BAD_PAGE, BAD_SEQUENCE};

use crate::decode::model::{Memory, Problem, Sequence};

/// A number that is changed.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// Of a sequence.
    Length(usize),
    Choice(usize),
    /// Of a sequence, and of a token.
    Page(usize, usize),
    Start(usize),
}

/// A number that is bad: what kernels set, what `validate` says, and the sequence it makes bad.
pub struct Bad {
    pub entry: Entry,
    pub number: i32,
    pub status: u32,
    pub message: String,
    pub sequence: usize,
}

/// The capacity of a sequence and the pages of the cache.
fn sizes(memory: &Memory) -> (usize, i32) {
    (memory.width * 16, memory.k.tensor.layout.batch() as i32)
}

fn bad_length(memory: &Memory, sequence: usize, number: i32, fresh: usize) -> Bad {
    let (capacity, _) = sizes(memory);
    let least = if fresh > 0 { format!("0, or {fresh} (its new tokens)") } else { "0".to_owned() };
    let message = format!(
        "cache.lengths[{sequence}]: {number} is not valid; expected {least} to {capacity} (what the cache holds of a sequence)"
    );
    Bad { entry: Entry::Length(sequence), number, status: BAD_LENGTH, message, sequence }
}

fn bad_choice(name: &str, sequence: usize, number: i32) -> Bad {
    let message =
        format!("{name}.choices[{sequence}]: {number} is not valid; expected 0 (short) or 1 (long)");
    Bad { entry: Entry::Choice(sequence), number, status: BAD_CHOICE, message, sequence }
}

pub fn bad_page(memory: &Memory, sequence: usize, token: usize, number: i32) -> Bad {
    let (page, last) = (token / 16, sizes(memory).1 - 1);
    let message = format!(
        "cache.pages[{sequence}][{page}]: {number} is not valid; expected 0 to {last}, a page of the cache"
    );
    Bad { entry: Entry::Page(sequence, token), number, status: BAD_PAGE, message, sequence }
}

/// Bad lengths, choices and pages of every sequence; the pages are those of the last token.
pub fn bad_entries(problem: &Problem, memory: &Memory, name: &str, fresh: usize) -> Vec<Bad> {
    let (capacity, pages) = sizes(memory);
    let mut all = Vec::new();
    for (i, &Sequence { length, .. }) in problem.sequences.iter().enumerate() {
        let mut lengths = vec![-1, i32::MIN, capacity as i32 + 1, i32::MAX];
        lengths
            .extend([1, fresh as i32 - 1].into_iter().filter(|&length| (1..fresh as i32).contains(&length)));
        all.extend(lengths.into_iter().map(|number| bad_length(memory, i, number, fresh)));
        all.extend([2, -1, i32::MAX].map(|number| bad_choice(name, i, number)));
        all.extend([-1, pages, i32::MIN].map(|number| bad_page(memory, i, length - 1, number)));
    }
    all
}

/// Starts that make one sequence bad. Those that fall are apart: rows are found by halving, which such starts mislead.
pub fn bad_starts(problem: &Problem, memory: &Memory) -> Vec<Bad> {
    let (total, fresh) = (problem.tokens()[1], problem.sequences[0].fresh as i64);
    let [first, second] = [memory.starts[0], memory.starts[1]];
    let last = memory.starts[3];
    let rise = |which: usize, number: i64, before: i64, sequence| Bad {
        entry: Entry::Start(which),
        number: number as i32,
        status: BAD_SEQUENCE,
        message: format!(
            "tokens.starts[{which}]: {number} is not valid; expected {before} to {total}: starts rise, and end within the tensors"
        ),
        sequence,
    };
    let most = |which: usize, number: i64, found: i64, before: i64, sequence| Bad {
        entry: Entry::Start(which),
        number: number as i32,
        status: BAD_SEQUENCE,
        message: format!(
            "tokens.starts[{}]: {found} is not valid; expected at most {}: {before} and the most new tokens",
            if which == 0 { 1 } else { which },
            before + fresh
        ),
        sequence,
    };
    assert_eq!(first + fresh, second);
    vec![
        rise(0, -1, 0, 0),
        rise(0, i64::from(i32::MIN), 0, 0),
        rise(4, total as i64 + 1, last, 3),
        rise(4, i64::from(i32::MAX), last, 3),
        most(0, first - 1, second, first - 1, 0),
        most(4, last + fresh + 1, last + fresh + 1, last, 3),
    ]
}

/// Puts a number where it belongs, and gives the one that was there.
pub fn set(memory: &mut Memory, choices: &mut [i32; 4], entry: Entry, number: i32) -> i32 {
    let wide = |place: &mut i64| std::mem::replace(place, i64::from(number)) as i32;
    match entry {
        Entry::Length(i) => wide(&mut memory.lengths[i]),
        Entry::Start(i) => wide(&mut memory.starts[i]),
        Entry::Choice(i) => std::mem::replace(&mut choices[i], number),
        Entry::Page(i, token) => std::mem::replace(&mut memory.table[i * memory.stride + token / 16], number),
    }
}

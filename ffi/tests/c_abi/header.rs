//! What the header says, by its text.

use std::collections::BTreeSet;

use crate::library::package;

/// The header without its comments.
pub fn code() -> String {
    let text = std::fs::read_to_string(package().join("include/longrope.h")).unwrap();
    let mut code = String::new();
    let mut rest = text.as_str();
    while let Some((before, comment)) = rest.split_once("/*") {
        code += before;
        rest = comment.split_once("*/").expect("a comment ends").1;
    }
    code + rest
}

/// The identifiers of some code.
pub fn identifiers(code: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    code.split(move |c| !is_part(c))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
}

/// The functions it declares.
pub fn functions() -> BTreeSet<String> {
    let code = code();
    let declarations = code.split("\nLONGROPE_API ").skip(1);
    declarations
        .map(|declaration| {
            let before = declaration.split_once('(').expect("a function has parameters").0;
            identifiers(before).last().unwrap().to_owned()
        })
        .collect()
}

/// The bodies of its `typedef KIND NAME { BODY } NAME;`, by name.
pub fn definitions(kind: &str) -> Vec<(String, String)> {
    let code = code();
    code.split(&format!("typedef {kind} "))
        .skip(1)
        .filter_map(|definition| {
            let (name, rest) = definition.split_once('{')?;
            let (body, _) = rest.split_once('}')?;
            // An opaque struct has no body: the brace would be that of the next definition.
            (!name.contains(';')).then(|| (name.trim().to_owned(), body.to_owned()))
        })
        .collect()
}

#[test]
fn every_name_of_the_header_is_ours() {
    let code = code();
    let defined = code.lines().filter_map(|line| line.strip_prefix("#define "));
    let defined = defined.map(|rest| identifiers(rest).next().unwrap());
    let constants: Vec<(String, String)> = definitions("enum");
    let constants = constants.iter().flat_map(|(name, body)| {
        let values = body.split(',').filter_map(|value| identifiers(value).next());
        values.chain([name.as_str()])
    });
    let mut count = 0;
    for name in defined.chain(constants) {
        assert!(name.starts_with("longrope_") || name.starts_with("LONGROPE_"), "{name}");
        count += 1;
    }
    assert!(count > 40, "only {count} names were found");
}

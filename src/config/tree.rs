//! A YAML document as plain values that remember where they stood.
//! Refuses what makes a configuration mean something else than it seems to: duplicate keys, aliases, second documents.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use serde_saphyr::granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use super::Fault;

/// Where a value came from; in the order in which faults are said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// A place in the file; both from 1.
    File { line: usize, column: usize },
    /// An environment variable.
    Environment(String),
}

/// The document's values, and each one's origin by its path.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) root: Value,
    pub(super) origins: BTreeMap<Vec<String>, Origin>,
}

impl Tree {
    /// Parses one YAML document whose root is a mapping; an empty document is an empty mapping.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let mut options = Options::default();
        options.emit_comments = false;
        let mut events = Parser::new_from_str_with_options(text, options);
        let mut builder = Builder::default();
        loop {
            match events.next() {
                None => break,
                Some(Err(error)) => {
                    let marker = error.marker();
                    let origin = Origin::File { line: marker.line(), column: marker.col() + 1 };
                    return Err(Fault::at(Some(origin), "", error.info()));
                }
                Some(Ok((event, span))) => builder.take(event, &span)?,
            }
        }
        let root = match builder.root {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(root @ Value::Object(_)) => root,
            Some(_) => return Err(Fault::at(None, "", "expected a mapping of sections".to_owned())),
        };
        Ok(Self { root, origins: builder.origins })
    }

    /// Puts `value` at `path`, into the items of sequences that are there, making mappings elsewhere on the way.
    pub(super) fn set(&mut self, path: &[String], value: Value, origin: Origin) {
        self.origins.retain(|known, _| !known.starts_with(path));
        self.note_origin(path, &value, origin);
        let mut place = &mut self.root;
        for segment in path {
            if child(place, segment).is_none() {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                if let Value::Object(mapping) = &mut *place {
                    mapping.insert(segment.clone(), Value::Null);
                }
            }
            let Some(next) = child(place, segment) else { return };
            place = next;
        }
        *place = value;
    }

    /// Says of all that `value` holds where it comes from.
    fn note_origin(&mut self, path: &[String], value: &Value, origin: Origin) {
        let inner: Vec<(String, &Value)> = match value {
            Value::Object(mapping) => mapping.iter().map(|(key, value)| (key.clone(), value)).collect(),
            Value::Array(items) => items.iter().enumerate().map(|(at, value)| (at.to_string(), value)).collect(),
            _ => Vec::new(),
        };
        for (key, value) in inner {
            self.note_origin(&[path, &[key]].concat(), value, origin.clone());
        }
        self.origins.insert(path.to_vec(), origin);
    }

    /// Takes the value at `path` out.
    pub(super) fn remove(&mut self, path: &[String]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let parent = parents.iter().try_fold(&mut self.root, |place, segment| child(place, segment))?;
        match parent {
            Value::Object(mapping) => mapping.remove(last),
            Value::Array(items) => items.get_mut(last.parse::<usize>().ok()?).map(Value::take),
            _ => None,
        }
    }

    /// Whether something stands at `path`.
    pub(super) fn holds(&self, path: &[String]) -> bool {
        let found = path.iter().try_fold(&self.root, |place, segment| match place {
            Value::Object(mapping) => mapping.get(segment),
            Value::Array(items) => items.get(segment.parse::<usize>().ok()?),
            _ => None,
        });
        found.is_some_and(|value| !value.is_null())
    }

    /// The origin of `path`, or of the nearest thing around it.
    pub(super) fn origin(&self, path: &[String]) -> Option<Origin> {
        (0..=path.len()).rev().find_map(|length| self.origins.get(&path[..length]).cloned())
    }
}

fn child<'t>(place: &'t mut Value, segment: &str) -> Option<&'t mut Value> {
    match place {
        Value::Object(mapping) => mapping.get_mut(segment),
        Value::Array(items) => items.get_mut(segment.parse::<usize>().ok()?),
        _ => None,
    }
}

/// The value that a plain YAML 1.2 scalar denotes.
pub(super) fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => text
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| text.parse::<u64>().map(Value::from))
            .ok()
            .or_else(|| {
                text.starts_with(|c: char| c.is_ascii_digit() || c == '-')
                    .then(|| text.parse::<f64>().ok())?
                    .map(Value::from)
            })
            .unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

/// Collections inside each other at most: what reads values goes down into them on its stack.
const DEEPEST: usize = 32;

/// A collection whose end has not come yet.
enum Open {
    Mapping { entries: Map<String, Value>, key: Option<String> },
    Sequence(Vec<Value>),
}

#[derive(Default)]
struct Builder {
    root: Option<Value>,
    open: Vec<Open>,
    path: Vec<String>,
    origins: BTreeMap<Vec<String>, Origin>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<(), Fault> {
        let here = Origin::File { line: span.start.line(), column: span.start.col() + 1 };
        match event {
            Event::Scalar(text, style, ..) => self.scalar(&text, style, here),
            Event::MappingStart(..) => self.begin(Open::Mapping { entries: Map::new(), key: None }, here),
            Event::SequenceStart(..) => self.begin(Open::Sequence(Vec::new()), here),
            Event::MappingEnd | Event::SequenceEnd => self.end(),
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(Fault::at(Some(here), "", "a second document".to_owned()))
            }
            Event::Alias(_) => Err(Fault::at(Some(here), "", "aliases are not supported".to_owned())),
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, here: Origin) -> Result<(), Fault> {
        if let Some(Open::Mapping { entries, key: key @ None }) = self.open.last_mut() {
            if entries.contains_key(text) {
                return Err(Fault::at(Some(here), text, "the key stands twice".to_owned()));
            }
            *key = Some(text.to_owned());
            self.path.push(text.to_owned());
            self.origins.insert(self.path.clone(), here);
            return Ok(());
        }
        self.enter_item(here);
        let value = if style == ScalarStyle::Plain { plain_scalar(text) } else { Value::String(text.to_owned()) };
        self.place(value);
        Ok(())
    }

    fn begin(&mut self, collection: Open, here: Origin) -> Result<(), Fault> {
        if let Some(Open::Mapping { key: None, .. }) = self.open.last() {
            return Err(Fault::at(Some(here), "", "a key must be a plain word".to_owned()));
        }
        if self.open.len() == DEEPEST {
            return Err(Fault::at(Some(here), "", "nested too deeply".to_owned()));
        }
        self.enter_item(here);
        self.open.push(collection);
        Ok(())
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.open.pop() {
            Some(Open::Mapping { entries, .. }) => self.place(Value::Object(entries)),
            Some(Open::Sequence(items)) => self.place(Value::Array(items)),
            None => {}
        }
        Ok(())
    }

    /// Notes where an item of a sequence begins; a mapping's value was noted with its key.
    fn enter_item(&mut self, here: Origin) {
        if let Some(Open::Sequence(items)) = self.open.last() {
            self.path.push(items.len().to_string());
            self.origins.insert(self.path.clone(), here);
        }
    }

    fn place(&mut self, value: Value) {
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::Sequence(items)) => {
                items.push(value);
                self.path.pop();
            }
            Some(Open::Mapping { entries, key }) => {
                if let Some(key) = key.take() {
                    entries.insert(key, value);
                    self.path.pop();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_remember_where_they_stood() {
        let tree = Tree::parse("a:\n  b: 1\n  c:\n    - x\n    - {d: 'true'}\n").unwrap();
        assert_eq!(tree.root, serde_json::json!({"a": {"b": 1, "c": ["x", {"d": "true"}]}}));
        let path: Vec<String> = ["a", "c", "1", "d"].map(str::to_owned).to_vec();
        assert_eq!(tree.origin(&path), Some(Origin::File { line: 5, column: 8 }));
    }

    #[test]
    fn an_item_of_a_sequence_is_set_where_it_stands() {
        let mut tree = Tree::parse("keys:\n  - {id: a}\n  - {id: b}\n").unwrap();
        let path: Vec<String> = ["keys", "1", "secret"].map(str::to_owned).to_vec();
        tree.set(&path, "hush".into(), Origin::Environment("KEYS".to_owned()));
        assert_eq!(tree.root, serde_json::json!({"keys": [{"id": "a"}, {"id": "b", "secret": "hush"}]}));
    }

    #[test]
    fn what_reads_two_ways_is_refused() {
        for text in ["a: 1\na: 2\n", "a: &x 1\nb: *x\n", "a: 1\n---\nb: 2\n", "- 1\n", "a: [1\n"] {
            assert!(Tree::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |depth: usize| Tree::parse(&format!("a: {}{}", "[".repeat(depth), "]".repeat(depth)));
        assert!(nested(DEEPEST - 1).is_ok());
        for depth in [DEEPEST, 100_000] {
            assert!(nested(depth).is_err(), "{depth}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-c:\\-\\[\\]{}&*!|>'\"#?, \n%@~1.]{0,60}") {
            let _ = Tree::parse(&text);
        }
    }
}

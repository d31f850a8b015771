//! The canonical form of a JSON text: object keys sorted at every depth, no whitespace, numbers as they came.
//! Pure and bounded: what is no JSON, or nests too deep, has none.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// Objects and arrays inside one another, at most.
const MOST_DEPTH: usize = 16;

/// The canonical form of `text`.
#[must_use]
pub(super) fn canonical(text: &str) -> Option<String> {
    let mut form = String::with_capacity(text.len());
    write(serde_json::from_str(text).ok()?, MOST_DEPTH, &mut form)?;
    Some(form)
}

fn write(value: &RawValue, depth: usize, form: &mut String) -> Option<()> {
    let text = value.get();
    match text.as_bytes().first()? {
        b'{' => write_object(text, depth.checked_sub(1)?, form),
        b'[' => write_array(text, depth.checked_sub(1)?, form),
        b'"' => write_string(&serde_json::from_str::<String>(text).ok()?, form),
        // A number, true, false or null.
        _ => {
            form.push_str(text);
            Some(())
        }
    }
}

fn write_object(text: &str, depth: usize, form: &mut String) -> Option<()> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
    let mut members: Vec<_> = members.into_iter().collect();
    // By UTF-16 code units, as RFC 8785 has it, and as Java and JavaScript sort.
    members.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
    form.push('{');
    for (index, (name, value)) in members.into_iter().enumerate() {
        if index > 0 {
            form.push(',');
        }
        write_string(&name, form)?;
        form.push(':');
        write(value, depth, form)?;
    }
    form.push('}');
    Some(())
}

fn write_array(text: &str, depth: usize, form: &mut String) -> Option<()> {
    let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    form.push('[');
    for (index, element) in elements.into_iter().enumerate() {
        if index > 0 {
            form.push(',');
        }
        write(element, depth, form)?;
    }
    form.push(']');
    Some(())
}

fn write_string(text: &str, form: &mut String) -> Option<()> {
    form.push_str(&serde_json::to_string(text).ok()?);
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn keys_are_sorted_at_every_depth_and_arrays_keep_their_order() {
        let text = r#" { "b" : [ 3 , {"z":1,"a" : null} , 1 ], "a":{"y":true,"x":""}, "B":false } "#;
        let expected = r#"{"B":false,"a":{"x":"","y":true},"b":[3,{"a":null,"z":1},1]}"#;
        assert_eq!(canonical(text).unwrap(), expected);
        assert_eq!(canonical(expected).unwrap(), expected);
    }

    #[test]
    fn numbers_stay_as_they_came() {
        let text = "[10.00,1e3,-0,0.1,123456789012345678901234567890,1E-7]";
        assert_eq!(canonical(text).unwrap(), text);
    }

    #[test]
    fn strings_are_written_one_way_however_they_were_escaped() {
        assert_eq!(canonical(r#"["\u0061\/\u00e9\n\u0007\"\\"]"#).unwrap(), "[\"a/\u{e9}\\n\\u0007\\\"\\\\\"]");
        assert_eq!(canonical(r#"{"\u0062":1,"a":2}"#).unwrap(), r#"{"a":2,"b":1}"#);
    }

    #[test]
    fn keys_sort_by_utf16_code_units() {
        // U+10000 is written with surrogates, which come before U+FFFD.
        let text = "{\"\u{fffd}\":1,\"\u{10000}\":2}";
        assert_eq!(canonical(text).unwrap(), "{\"\u{10000}\":2,\"\u{fffd}\":1}");
    }

    #[test]
    fn the_last_of_two_members_of_one_name_counts() {
        assert_eq!(canonical(r#"{"a":1,"a":2}"#).unwrap(), r#"{"a":2}"#);
    }

    #[test]
    fn what_is_no_json_or_nests_too_deep_has_no_canonical_form() {
        for text in ["", " ", "{", "{]", "[1,]", "{\"a\"}", "nul", "1 2", "{\"a\":1}x", "\"\\ud800\"", "'a'"] {
            assert_eq!(canonical(text), None, "{text}");
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(canonical(&nested(MOST_DEPTH)).unwrap(), nested(MOST_DEPTH));
        for depth in [MOST_DEPTH + 1, 32_000] {
            assert_eq!(canonical(&nested(depth)), None);
            assert_eq!(canonical(&("{\"a\":".repeat(depth) + "1" + &"}".repeat(depth))), None);
        }
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaves = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaves.prop_recursive(6, 60, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(".{0,4}", inner, 0..6).prop_map(|members| json!(members)),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_canonical_form_says_the_same_and_is_its_own(document in documents()) {
            let pretty = serde_json::to_string_pretty(&document).unwrap();
            let form = canonical(&pretty).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Value>(&form).unwrap(), &document);
            prop_assert_eq!(&canonical(&form).unwrap(), &form);
            prop_assert_eq!(canonical(&document.to_string()).unwrap(), form);
        }

        #[test]
        fn no_text_makes_it_panic(text in r#"[\[\]{}":,0-9a\\ue. -]{0,40}"#) {
            if let Some(form) = canonical(&text) {
                prop_assert_eq!(canonical(&form), Some(form));
            }
        }
    }
}

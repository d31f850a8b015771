//! The configuration's JSON Schema, so that editors complete keys and show their manual.
//! Made from the sections themselves; beside each secret stands the key that names its file.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{Config, Secret};
use crate::session::TenantId;

/// The schema of the file.
#[must_use]
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    name_secret_files(&mut schema);
    schema
}

/// Puts `<key>_file` beside each key that holds a secret, wherever it stands.
fn name_secret_files(schema: &mut Value) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        let secrets: Vec<String> =
            properties.iter().filter(|(_, property)| is_secret(property)).map(|(key, _)| key.clone()).collect();
        for key in secrets {
            let manual = format!("A file that holds `{key}`.");
            properties.insert(format!("{key}_file"), json!({"type": "string", "description": manual}));
        }
    }
    match schema {
        Value::Object(members) => members.values_mut().for_each(name_secret_files),
        Value::Array(items) => items.iter_mut().for_each(name_secret_files),
        _ => {}
    }
}

fn is_secret(property: &Value) -> bool {
    let refers = |schema: &Value| schema["$ref"] == "#/$defs/Secret";
    refers(property) || property["anyOf"].as_array().is_some_and(|any| any.iter().any(refers))
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string"})
    }
}

impl JsonSchema for TenantId {
    fn schema_name() -> Cow<'static, str> {
        "Tenant".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[a-z][a-z0-9]{2,15}$"})
    }
}

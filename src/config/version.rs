//! The version of the configuration's shape, so that a release says of a file of another one what it reads.
//! It is raised when a file that was good would be refused, or mean something else.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// The version that this release reads.
const READ: u64 = 1;

/// The version of a file: none but the one that this release reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Version(u64);

impl Default for Version {
    fn default() -> Self {
        Self(READ)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            said if said.as_u64() == Some(READ) => Ok(Self(READ)),
            said => {
                Err(D::Error::custom(format!("{said} is a version that this release does not read; it reads {READ}")))
            }
        }
    }
}

impl JsonSchema for Version {
    fn schema_name() -> Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"const": READ})
    }
}

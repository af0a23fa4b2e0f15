//! Enums whose variants are words in options, metrics, logs and JSON. They never change.

/// Defines an enum with a word for each variant.
macro_rules! label_values {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All variants, sorted by discriminant.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The words of all variants.
            pub const WORDS: &'static [&'static str] = &[$($word,)*];

            /// The word of this variant.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }

            /// The variant of a word; `None` for any other text.
            pub fn parse(word: &str) -> Option<$name> {
                $name::ALL.iter().copied().find(|value| value.as_str() == word)
            }
        }
    };
}
pub(crate) use label_values;

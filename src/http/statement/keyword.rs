//! The words that say what a SQL statement does. It knows nothing about where they may be.

use crate::http::statement::StatementClass::{self, Admin, Read, Show, Unknown, Write};

/// Defines the words that say what a statement does. Their spelling is that of the variants, in any case.
macro_rules! keywords {
    ($($name:ident)*) => {
        /// A keyword.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Keyword {
            $($name,)*
            /// Any other word.
            Other,
        }

        impl Keyword {
            /// The keyword in a word of any case.
            #[expect(non_upper_case_globals, reason = "the constants have the names of the variants")]
            pub fn find(word: &str) -> Keyword {
                $(const $name: u128 = pack(stringify!($name));)*
                match pack(word) {
                    $($name => Keyword::$name,)*
                    _ => Keyword::Other,
                }
            }
        }
    };
}

keywords! {
    Alter Analyse Analyze As Backup Bulk By Cache Copy Create Dbcc Delete Deny Desc Describe Drop Exec Execute Explain For
    Grant Insert Into Kill Load Merge Nq Q Reconfigure Refresh Replace Reset Restore Revoke Select Set SetUser Show Shutdown
    Table Truncate Uncache Update UpdateText Upsert Use Using Values With WriteText
}

/// The letters of a word as one number, the same for upper and lower case; 0 for words that are longer than any keyword.
/// Only letters become letters, so a word has the number of a keyword only if it is that keyword.
const fn pack(word: &str) -> u128 {
    let bytes = word.as_bytes();
    if bytes.len() > size_of::<u128>() {
        return 0;
    }
    let (mut packed, mut index) = (0, 0);
    while index < bytes.len() {
        packed = packed << 8 | (bytes[index] & 0xdf) as u128;
        index += 1;
    }
    packed
}

impl Keyword {
    /// The class of a statement that begins with it.
    pub fn class(self) -> StatementClass {
        use Keyword as K;
        match self {
            K::Select | K::Values => Read,
            K::Show | K::Describe | K::Desc | K::Explain => Show,
            K::Insert | K::Update | K::Delete | K::Merge | K::Replace | K::Upsert | K::Load | K::Copy | K::Truncate => {
                Write
            }
            K::Create | K::Alter | K::Drop | K::Grant | K::Revoke | K::Set | K::Reset | K::Use => Admin,
            K::Refresh | K::Cache | K::Uncache => Admin,
            _ => Unknown,
        }
    }

    /// Whether it begins a statement that changes data and may be part of another one, or follow it without a semicolon.
    pub fn changes_data(self) -> bool {
        use Keyword as K;
        let is_standard = matches!(self, K::Insert | K::Update | K::Delete | K::Merge | K::Load);
        is_standard || matches!(self, K::Bulk | K::WriteText | K::UpdateText)
    }

    /// SECURITY: in T-SQL a statement needs no semicolon before it: `SELECT 1 DROP TABLE t` executes both. These words
    /// are reserved there, so they begin a statement wherever one can begin.
    pub fn is_powerful(self) -> bool {
        use Keyword as K;
        let changes_structure = matches!(self, K::Drop | K::Alter | K::Create | K::Grant | K::Revoke | K::Deny);
        let executes = matches!(self, K::Exec | K::Execute | K::Dbcc | K::Kill | K::Shutdown);
        let changes_session = matches!(self, K::Use | K::SetUser | K::Reconfigure);
        changes_structure || executes || changes_session || matches!(self, K::Backup | K::Restore)
    }
}

package tools

// all are the tools, in the order in which they are listed. It is set in init
// because the calls look into it for messages.
var all []Tool

func init() {
	all = []Tool{
		{
			Name: "Read", Title: "Read a file", ReadOnly: true, Idempotent: true, Input: schema[readInput](), Output: schema[readOutput](), call: callRead,
			Description: "Reads a text file, up to 2000 lines or 50 KB at a time; offset and limit page. PNG, JPEG, GIF and WebP files come back as images.",
		},
		{
			Name: "Write", Title: "Write a file", Destructive: true, Idempotent: true, Input: schema[writeInput](), Output: schema[writeOutput](), call: callWrite,
			Description: "Makes a file or replaces its whole content, at once. Missing directories are made. Refused when the file changed since it was last read.",
		},
		{
			Name: "Edit", Title: "Edit a file", Destructive: true, Input: schema[editInput](), Output: schema[editOutput](), call: callEdit,
			Description: "Replaces text in a file. The old text must be in the file exactly once, unless all is set. Refused when the file changed since it was last read.",
		},
		{
			Name: "Bash", Title: "Run a command", Destructive: true, Input: schema[bashInput](), Output: schema[bashOutput](), call: callBash,
			Description: "Runs a bash command and returns its output and exit code. Each call is a new shell: directory and variables do not carry over. " +
				"Of long output the beginning and the end are shown and the whole is stored in a file for Read. What the command leaves running is ended; " +
				"background starts a process that stays, and process talks to one.",
		},
		{
			Name: "Glob", Title: "Find files", ReadOnly: true, Idempotent: true, Input: schema[globInput](), Output: schema[globOutput](), call: callGlob,
			Description: "Finds files by a pattern of their paths: * and ? within a name, ** any number of directories, [a-z], {a,b}. Sorted; dotfiles match.",
		},
		{
			Name: "Grep", Title: "Search in files", ReadOnly: true, Idempotent: true, Input: schema[grepInput](), Output: schema[grepOutput](), call: callGrep,
			Description: "Finds lines that match a regular expression, in a file or in all files of a directory. Binary files are passed over.",
		},
		{
			Name: "Mount", Title: "Mount a directory", Input: schema[mountInput](), Output: schema[mountOutput](), call: callMount,
			Description: "Shows a directory of the host in the running sandbox, read-only, or copy-on-write: the host's own is never written to.",
		},
		{
			Name: "Diff", Title: "Show the changes", ReadOnly: true, Idempotent: true, Input: schema[diffInput](), Output: schema[diffOutput](), call: callDiff,
			Description: "Shows what this session changed against the project, as a patch.",
		},
		{
			Name: "Log", Title: "Show the history", ReadOnly: true, Idempotent: true, Input: schema[logInput](), Output: schema[logOutput](), call: callLog,
			Description: "Lists the points that the session can go back to, the latest first, with what each changed. There is one after every call that changed something.",
		},
		{
			Name: "Snapshot", Title: "Name this point", Input: schema[snapshotInput](), Output: schema[Point](), call: callSnapshot,
			Description: "Gives what the files are now a name, to come back to.",
		},
		{
			Name: "Rollback", Title: "Go back", Destructive: true, Idempotent: true, Input: schema[rollbackInput](), Output: schema[rollbackOutput](), call: callRollback,
			Description: "Makes all files what they were at a point of the history. What they were until now stays in the history.",
		},
		{
			Name: "RequestReview", Title: "Ask for a review", Idempotent: true, Input: schema[reviewInput](), Output: schema[Review](), call: callReview,
			Description: "Asks a person to review the changes and to commit them to the project. An agent cannot commit.",
		},
	}
}

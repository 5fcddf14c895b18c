package review

import (
	"path"
	"strings"
	"sync"
	"unicode"

	"github.com/bmatcuk/doublestar/v4"
)

// hostRule names files on which a program of the host acts by itself.
type hostRule struct {
	// pattern in doublestar syntax, matched against the path in lower case
	// as it is; without a slash, against the last component.
	pattern string
	reason  string
}

// hostRules is a table, not a proof: it names the places that have been used to
// run code on a developer's machine through a file that an agent may write. The
// first match counts.
var hostRules = []hostRule{
	{"**/.git/hooks/**", "is run by git"},
	{"**/.git/modules/**", "configures git, which can run programs"},
	{"**/.git/config*", "configures git, which can run programs"},
	{"**/.git/info/**", "configures git, which can run programs"},
	{"**/.git/objects/info/alternates", "makes git read objects from elsewhere"},
	{"**/.git/worktrees/**", "points git to another repository"},
	{".git", "points git to a repository, whose configuration can run programs"},
	{".gitattributes", "selects filters and merge drivers that git runs"},
	{".gitmodules", "names repositories that git fetches"},
	{".gitconfig", "configures git, which can run programs"},
	{"**/{.husky,.githooks,.hooks}/**", "is run as a git hook"},
	{"{lefthook,.lefthook}.{yml,yaml,toml,json}", "configures programs that git hooks run"},
	{".pre-commit-config.{yml,yaml}", "configures programs that git hooks run"},
	{".pre-commit-hooks.{yml,yaml}", "configures programs that git hooks run"},
	{"**/.{vscode,idea,zed,fleet,devcontainer}/**", "is read by an editor, which may run what it names"},
	{"*.code-workspace", "is read by an editor, which may run what it names"},
	{".devcontainer.json", "is read by an editor, which may run what it names"},
	{".{vim,nvim,gvim,ex}rc", "is run by an editor"},
	{".nvim.lua", "is run by an editor"},
	{".dir-locals.el", "is run by an editor"},
	{".editorconfig", "is read by editors"},
	{".{envrc,env,mise.toml,tool-versions}", "sets the environment of shells that enter the directory"},
	{"{mise,.mise}.toml", "is run by shells that enter the directory"},
	{".{bash,zsh,ksh,csh,tcsh}rc", "is run by a shell"},
	{".{profile,bash_profile,bash_login,bash_logout,zshenv,zprofile,zlogin,zlogout,inputrc}", "is run by a shell"},
	{"**/.config/{fish,autostart,systemd,environment.d}/**", "is run when a person logs in"},
	{"**/.local/bin/**", "is a program on a person's path"},
	{"**/.ssh/**", "decides who may log in, and can run programs"},
	{".{netrc,npmrc,yarnrc,yarnrc.yml,pypirc,gemrc,condarc}", "names servers, credentials or programs of a package manager"},
	{".pnpmfile.{cjs,js}", "is run by a package manager"},
	{"package.json", "has scripts that a package manager runs"},
	{"{package-lock,npm-shrinkwrap}.json", "decides which packages are installed"},
	{"{yarn.lock,pnpm-lock.yaml,bun.lock,bun.lockb,cargo.lock,go.sum,poetry.lock,uv.lock,pipfile.lock,gemfile.lock,composer.lock}", "decides which packages are installed"},
	{"**/node_modules/.bin/**", "is a program that scripts run by name"},
	{"{gnumakefile,makefile,justfile,.justfile,rakefile,tiltfile,procfile,vagrantfile}", "is run by a build"},
	{"*.mk", "is run by a build"},
	{"taskfile.{yml,yaml}", "is run by a build"},
	{"{dockerfile,containerfile}*", "is run by a build"},
	{"*.dockerfile", "is run by a build"},
	{"{docker-compose,compose}*.{yml,yaml}", "starts containers on the host"},
	{"build.rs", "is run by cargo"},
	{"**/.cargo/config{,.toml}", "configures programs that cargo runs"},
	{"rust-toolchain{,.toml}", "selects the compiler that cargo runs"},
	{"{go.mod,go.work}", "decides which modules and which toolchain are run"},
	{"{setup.py,setup.cfg,pyproject.toml,conftest.py,noxfile.py,tasks.py,tox.ini,manage.py}", "is run by Python tools"},
	{"{sitecustomize,usercustomize}.py", "is run by every Python program"},
	{"*.pth", "is run by every Python program"},
	{"pyvenv.cfg", "selects the Python that is run"},
	{"requirements*.txt", "decides which packages are installed"},
	{"{gemfile,*.gemspec}", "is run by Ruby tools"},
	{"{build,settings,init}.gradle{,.kts}", "is run by a build"},
	{"{gradlew,gradlew.bat,mvnw,mvnw.cmd}", "is run by a build"},
	{"**/{gradle,.mvn}/**", "is run by a build"},
	{"gradle.properties", "configures a build"},
	{"pom.xml", "is run by a build"},
	{"cmakelists.txt", "is run by a build"},
	{"*.cmake", "is run by a build"},
	{"{cmakepresets,cmakeuserpresets}.json", "is run by a build"},
	{"{configure,configure.ac,meson.build,build.zig,mix.exs,build.sbt,build.ninja,workspace,workspace.bazel,module.bazel,.bazelrc,build.bazel}", "is run by a build"},
	{"*.{csproj,fsproj,vcxproj,sln,props,targets}", "is run by a build"},
	{"{flake,shell,default}.nix", "is run by nix"},
	{"**/.github/{workflows,actions}/**", "is run by continuous integration"},
	{"**/{.circleci,.buildkite,.gitea,.forgejo,.woodpecker}/**", "is run by continuous integration"},
	{"{.gitlab-ci,.travis,appveyor,.appveyor,azure-pipelines,bitbucket-pipelines,.drone,cloudbuild,.cirrus}.{yml,yaml}", "is run by continuous integration"},
	{"jenkinsfile*", "is run by continuous integration"},
	{"**/.{claude,cursor,codex,gemini,windsurf,aider,continue,kiro}/**", "instructs or configures an agent"},
	{".{mcp,claude}.json", "configures programs that an agent runs"},
	{"mcp.json", "configures programs that an agent runs"},
	{"{agents,claude,gemini}{,.local}.md", "instructs an agent"},
	{".{cursorrules,windsurfrules,clinerules,aider.conf.yml}", "instructs an agent"},
	{"{.eslintrc,eslint.config,.prettierrc,prettier.config,babel.config,.babelrc,jest.config,vite.config,vitest.config,webpack.config,rollup.config,next.config,nuxt.config,svelte.config,tailwind.config,postcss.config,gulpfile,gruntfile}.{js,cjs,mjs,ts,cts,mts}", "is run by JavaScript tools"},
	{".{gdbinit,lldbinit}", "is run by a debugger"},
	{".{screenrc,tmux.conf}", "is run by a terminal multiplexer"},
	{"{.desktop,*.desktop}", "is a program that a desktop offers to start"},
	{"crontab", "is run by cron"},
	{"*.service", "is run by systemd"},
}

// runsOnHost is why a program on the host acts on a path, or "". Programs
// look these names up on file systems that may fold case, so they are compared
// in lower case.
func runsOnHost(p string) string {
	p = strings.ToLower(p)
	last := path.Base(p)
	m := hostMatcher()
	best, ok := m.names[last]
	if !ok {
		best = len(hostRules)
	}
	for _, part := range m.rest {
		if part.rule >= best {
			break
		}
		if strings.Contains(p, part.literal) && hostRules[part.rule].matches(p, last) {
			best = part.rule
			break
		}
	}
	if best == len(hostRules) {
		return ""
	}
	return hostRules[best].reason
}

// matches compares a path in lower case, of which last is the last component.
func (r *hostRule) matches(p, last string) bool {
	subject := p
	if !strings.Contains(r.pattern, "/") {
		subject = last
	}
	ok, err := doublestar.Match(r.pattern, subject)
	return err == nil && ok
}

// hostTable is hostRules in a form in which a path, of which a change set may
// have many, need not be matched against each pattern.
type hostTable struct {
	names map[string]int // rules, by the last components that they name outright
	rest  []hostPart     // all others, in the order of the rules
}

// hostPart is a rule, or one alternative of it, with a text that a path must
// have in it to match.
type hostPart struct {
	rule    int
	literal string
}

var hostMatcher = sync.OnceValue(func() *hostTable {
	t := &hostTable{names: map[string]int{}}
	for i := range hostRules {
		for _, alternative := range expandBraces(hostRules[i].pattern) {
			if !strings.ContainsAny(alternative, "/*") {
				if _, ok := t.names[alternative]; !ok {
					t.names[alternative] = i
				}
				continue
			}
			part := hostPart{rule: i}
			for piece := range strings.SplitSeq(alternative, "*") {
				// A slash beside ** may match nothing.
				if piece = strings.Trim(piece, "/"); len(piece) > len(part.literal) {
					part.literal = piece
				}
			}
			t.rest = append(t.rest, part)
		}
	}
	return t
})

// expandBraces lists what a pattern means with one of each of its
// alternatives, which are not nested.
func expandBraces(pattern string) []string {
	before, rest, ok := strings.Cut(pattern, "{")
	if !ok {
		return []string{pattern}
	}
	inner, after, _ := strings.Cut(rest, "}")
	var out []string
	for alternative := range strings.SplitSeq(inner, ",") {
		for _, tail := range expandBraces(after) {
			out = append(out, before+alternative+tail)
		}
	}
	return out
}

// foldName takes out what some file systems, or the eye, do not tell apart:
// invisible and formatting characters, trailing dots and spaces of a component
// (Windows), and an NTFS stream or short name of .git.
func foldName(p string) string {
	parts := strings.Split(p, "/")
	for i, part := range parts {
		part = strings.Map(func(r rune) rune {
			if unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Variation_Selector, r) || r == unicode.ReplacementChar {
				return -1
			}
			// Fullwidth forms look and, normalised, are like ASCII.
			if r >= 0xFF01 && r <= 0xFF5E {
				return r - 0xFF01 + '!'
			}
			return r
		}, part)
		if stream := strings.IndexByte(part, ':'); stream > 0 {
			part = part[:stream]
		}
		if part != "." && part != ".." {
			part = strings.TrimRight(part, ". ")
		}
		if strings.EqualFold(part, "git~1") {
			part = ".git"
		}
		parts[i] = part
	}
	return strings.Join(parts, "/")
}

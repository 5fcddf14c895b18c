#needs: npm node
#network
echo '{"name":"app","version":"1.0.0","private":true}' >package.json
#--- install from the registry
export npm_config_cache="$(mktemp -d)"
npm install --silent semver@7.6.3 ms@2.1.3
node -e 'console.log(require("semver").gt("1.2.3", "1.0.0"), require("ms")("2 days"))'
ls node_modules
node_modules/.bin/semver 1.2.3
#--- remove
rm -r node_modules
ls
